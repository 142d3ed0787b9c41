/* SPDX-License-Identifier: Apache-2.0 */
#include "core/room.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "core/context.h"

/** This process's memory that is of no file. */
static uint64_t anonymous_bytes(void)
{
    uint64_t resident = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%*u %" SCNu64 " %" SCNu64, &resident, &shared) != 2)
        resident = shared = 0;
    if (f)
        fclose(f);
    return resident > shared ? (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/** UINT64_MAX where the system does not say. */
static uint64_t available_bytes(void)
{
    char line[128];
    uint64_t kib = UINT64_MAX / 1024;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "MemAvailable: %" SCNu64, &kib) != 1)
        continue;
    if (f)
        fclose(f);
    return kib * 1024;
}

uint64_t kt_room_for_files(const kt_context *ctx)
{
    const uint64_t largest_margin = (uint64_t)4 << 30;
    uint64_t host = kt_context_host_memory(ctx), own = anonymous_bytes();
    uint64_t available = available_bytes();
    if (own < ctx->memory_used)
        own = ctx->memory_used; /* some of it may not have been touched yet */
    uint64_t room = host > own ? host - own : 0;
    room = room < available ? room : available;
    return room - (room / 8 < largest_margin ? room / 8 : largest_margin);
}
