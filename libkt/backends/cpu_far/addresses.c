/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses that the host can hold and cannot follow. They come out of one reserved region, in
 * turn, so that one which was freed is not soon an address of something else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backends/cpu_far/far.h"
#include "core/context.h"

/* Allocations begin 64 bytes into a page, the least alignment that a device promises, and a page
 * that belongs to nobody lies between two. */
enum { PAGE = 4096, BEGIN = 64 };

static const uint64_t region_bytes = 1ull << 36;

kt_status kt_far_reserve(kt_context *ctx, struct kt_far_addresses *a)
{
    void *region =
        mmap(NULL, region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED)
        return kt_fail_memory(ctx, region_bytes, "the addresses of a device");
    a->region = region;
    a->next = (uint64_t)(uintptr_t)region;
    return KT_OK;
}

void kt_far_unreserve(struct kt_far_addresses *a)
{
    if (a->region)
        munmap(a->region, region_bytes);
    free(a->live);
}

bool kt_far_is_reserved(const struct kt_far_addresses *a, const void *address)
{
    return (uint64_t)(uintptr_t)address - (uint64_t)(uintptr_t)a->region < region_bytes;
}

/** Number of allocations that begin at `address` or below. */
static size_t count_below(const struct kt_far_addresses *a, uint64_t address)
{
    size_t low = 0, high = a->num_live;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (a->live[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct kt_far_allocation *kt_far_find(const struct kt_far_addresses *a, const void *address)
{
    uint64_t at = (uint64_t)(uintptr_t)address;
    size_t below = count_below(a, at);
    struct kt_far_allocation *last = below ? &a->live[below - 1] : NULL;
    /* an empty one has its address */
    return last && (at == last->address || at - last->address < last->bytes) ? last : NULL;
}

static uint64_t pages(uint64_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

/** `bytes` bytes of the region from `from` on that no allocation has; 0 where there are none. */
static uint64_t find_room(const struct kt_far_addresses *a, uint64_t from, uint64_t bytes)
{
    uint64_t end = (uint64_t)(uintptr_t)a->region + region_bytes;
    for (size_t i = count_below(a, from); i <= a->num_live; i++) {
        uint64_t gap_end = i < a->num_live && a->live[i].address < end ? a->live[i].address : end;
        if (from < gap_end && gap_end - from >= bytes)
            return from;
        if (gap_end == end)
            return 0;
        from = pages(a->live[i].address + a->live[i].bytes) + PAGE;
    }
    return 0;
}

static uint64_t take_address(struct kt_far_addresses *a, uint64_t bytes)
{
    if (bytes > region_bytes - 3 * PAGE)
        return 0;
    uint64_t taken = pages(BEGIN + bytes) + PAGE;
    uint64_t at = find_room(a, a->next, taken);
    if (!at)
        at = find_room(a, (uint64_t)(uintptr_t)a->region, taken);
    if (!at)
        return 0;
    a->next = at + taken;
    return at + BEGIN;
}

static bool make_room(struct kt_far_addresses *a)
{
    if (a->num_live < a->room)
        return true;
    size_t room = 2 * a->room + 64;
    struct kt_far_allocation *live = realloc(a->live, room * sizeof *live);
    if (!live)
        return false;
    a->live = live;
    a->room = room;
    return true;
}

kt_status kt_far_add(kt_context *ctx, struct kt_far_addresses *a, enum kt_memory kind,
                     uint64_t bytes, const char *what, char *real, void **out)
{
    uint64_t address = (uint64_t)(uintptr_t)real;
    if (kind != KT_MEMORY_PINNED)
        address = take_address(a, bytes);
    if (!address || !make_room(a))
        return kt_fail_memory(ctx, bytes, what);
    size_t at = count_below(a, address);
    memmove(a->live + at + 1, a->live + at, (a->num_live - at) * sizeof *a->live);
    a->live[at] =
        (struct kt_far_allocation){.address = address, .bytes = bytes, .real = real, .kind = kind};
    snprintf(a->live[at].what, sizeof a->live[at].what, "%s", what);
    a->num_live++;
    *out = (void *)(uintptr_t)address;
    return KT_OK;
}

void kt_far_remove(struct kt_far_addresses *a, struct kt_far_allocation *allocation)
{
    size_t at = (size_t)(allocation - a->live);
    a->num_live--;
    memmove(allocation, allocation + 1, (a->num_live - at) * sizeof *allocation);
}
