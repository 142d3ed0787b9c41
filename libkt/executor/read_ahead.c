/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/read_ahead.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/context.h"
#include "core/threads.h"

enum { STEP = 4 << 20 };

struct wish {
    const struct kt_range *ranges;
    int32_t num;
    bool look;
    _Atomic bool *resident;
};

struct kt_read_ahead {
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct wish wish;       /**< under the lock; num 0 = none */
    atomic_uint generation; /**< of the wish: an older one is dropped at its next step */
    bool ends;              /**< under the lock */
};

/** Asks for a step of a range unless it looks and its first page is there; whether it is. */
static bool ask(bool look, const char *begin, const char *end)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    char *first = (char *)((uintptr_t)begin / page * page);
    unsigned char there = 1;
    if (look && (mincore(first, page, &there) != 0 || (there & 1)))
        return true;
    kt_want_pages((struct kt_range){begin, end});
    return !look;
}

static void grant(struct kt_read_ahead *reader, const struct wish *wish, unsigned generation)
{
    bool resident = true;
    for (int32_t i = 0; i < wish->num; i++) {
        const char *end = wish->ranges[i].end;
        for (const char *at = wish->ranges[i].begin; at < end; at += STEP) {
            if (atomic_load(&reader->generation) != generation)
                return;
            resident &= ask(wish->look, at, end - at < STEP ? end : at + STEP);
        }
    }
    if (resident)
        atomic_store(wish->resident, true);
}

static void *serve(void *arg)
{
    struct kt_read_ahead *reader = arg;
    pthread_mutex_lock(&reader->lock);
    while (!reader->ends) {
        struct wish wish = reader->wish;
        unsigned generation = atomic_load(&reader->generation);
        reader->wish.num = 0;
        if (!wish.num) {
            pthread_cond_wait(&reader->wake, &reader->lock);
            continue;
        }
        pthread_mutex_unlock(&reader->lock);
        grant(reader, &wish, generation);
        pthread_mutex_lock(&reader->lock);
    }
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

kt_status kt_read_ahead_create(kt_context *ctx, struct kt_read_ahead **out)
{
    struct kt_read_ahead *reader = calloc(1, sizeof *reader);
    *out = reader;
    if (!reader)
        return kt_fail_memory(ctx, sizeof *reader, "reading ahead");
    pthread_mutex_init(&reader->lock, NULL);
    pthread_cond_init(&reader->wake, NULL);
    return KT_OK;
}

void kt_read_ahead_free(struct kt_read_ahead *reader)
{
    if (!reader)
        return;
    pthread_mutex_lock(&reader->lock);
    reader->ends = true;
    atomic_fetch_add(&reader->generation, 1);
    pthread_cond_signal(&reader->wake);
    pthread_mutex_unlock(&reader->lock);
    if (reader->started)
        pthread_join(reader->thread, NULL);
    pthread_cond_destroy(&reader->wake);
    pthread_mutex_destroy(&reader->lock);
    free(reader);
}

void kt_read_ahead_want(struct kt_read_ahead *reader, const struct kt_range *ranges, int32_t num,
                        bool look, _Atomic bool *resident)
{
    pthread_mutex_lock(&reader->lock);
    if (!reader->started)
        reader->started = kt_thread_start(&reader->thread, serve, reader) == 0;
    reader->wish = (struct wish){ranges, num, look, resident};
    atomic_fetch_add(&reader->generation, 1);
    pthread_cond_signal(&reader->wake);
    pthread_mutex_unlock(&reader->lock);
}
