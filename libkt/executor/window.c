/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/window.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/context.h"
#include "core/threads.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"

/** Faults read around themselves: a range of less than LARGE is asked for as it is instead. */
enum { PIECE = KT_FETCH_BYTES, LARGE = 8 * PIECE, NONE = -1 };

/** What could not be read; error 0 = nothing. */
struct failure {
    struct kt_range range;
    int error;
};

struct kt_window {
    const struct kt_checkpoint *checkpoint;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t wake; /**< of the thread */
    pthread_cond_t done; /**< of who waits for a unit */
    char *buffer;        /**< of the thread, KT_FETCH_BYTES */
    atomic_bool ends;
    atomic_int wanted; /**< the unit that is waited for, or NONE */
    /* under the lock */
    const struct kt_ranges *units; /**< NULL = none was entered */
    struct kt_walk_state state;    /**< with the next two */
    uint64_t *bytes;
    bool *held;
    int32_t failed; /**< the unit that `failure` is of, or NONE */
    struct failure failure;
};

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* -- files ------------------------------------------------------------------------------------- */

static const struct kt_mapped_file *file_of(const struct kt_checkpoint *c, const char *data)
{
    size_t file = kt_checkpoint_file(c, data);
    return file < c->num_files ? &c->files[file] : NULL;
}

/** The error of reading a piece of a range. */
static int fetch(const struct kt_checkpoint *c, struct kt_range range, char *buffer)
{
    const struct kt_mapped_file *file = file_of(c, range.begin);
    return file ? kt_mapped_file_fetch(file, range, buffer) : 0;
}

void kt_window_drop(const struct kt_checkpoint *c, const struct kt_ranges *unit)
{
    for (int32_t i = 0; i < unit->num; i++) {
        const struct kt_mapped_file *file = file_of(c, unit->ranges[i].begin);
        if (file)
            kt_mapped_file_drop(file, unit->ranges[i]);
    }
}

/** The first page of a piece that cannot be read, as far as it still cannot. */
static const char *find_page(const struct kt_checkpoint *c, const struct failure *f)
{
    enum { PAGE = 4096 };
    const char *at = f->range.begin;
    while (at + PAGE < f->range.end && fetch(c, (struct kt_range){at, at + PAGE}, NULL) == 0)
        at += PAGE;
    return at;
}

static const char *tensor_at(const struct kt_checkpoint *c, const char *data)
{
    for (size_t i = 0; i < c->num_tensors; i++) {
        const struct kt_tensor *t = &c->tensors[i];
        if (data < (const char *)t->data + t->bytes && data + 4096 > (const char *)t->data)
            return t->name;
    }
    return "";
}

static kt_status report(const struct kt_checkpoint *c, const struct failure *f)
{
    const struct kt_mapped_file *file = file_of(c, f->range.begin);
    KT_TRY(kt_mapped_file_check(c->ctx, file));
    const char *page = find_page(c, f);
    return kt_fail(
        c->ctx, KT_ERROR_IO,
        "%s: cannot read tensor \"%s\", about byte %llu of the file: %s; check the disk, "
        "or copy the file again",
        file->path, tensor_at(c, page), (unsigned long long)(page - (const char *)file->map),
        strerror(f->error == EFAULT ? EIO : f->error));
}

/* -- the thread -------------------------------------------------------------------------------- */

static bool is_stopped(struct kt_window *w, int32_t unit)
{
    int32_t wanted = atomic_load(&w->wanted);
    return atomic_load(&w->ends) || (wanted != NONE && wanted != unit);
}

/** Reads a range; false where it stopped before that, for another unit or for a failure. */
static bool read_range(struct kt_window *w, struct kt_range range, int32_t unit,
                       struct failure *failure)
{
    bool large = range.end - range.begin >= LARGE;
    if (!large)
        kt_want_pages(range);
    for (const char *at = range.begin; at < range.end;) {
        uint64_t whole = PIECE - (uintptr_t)at % PIECE;
        struct kt_range piece = {at, at + smaller((uint64_t)(range.end - at), whole)};
        if (is_stopped(w, unit))
            return false;
        *failure = (struct failure){piece, fetch(w->checkpoint, piece, large ? w->buffer : NULL)};
        if (failure->error)
            return false;
        at = piece.end;
    }
    return true;
}

/** The same with up to `bytes` of a unit. */
static bool read_unit(struct kt_window *w, const struct kt_ranges *unit, int32_t index,
                      uint64_t bytes, struct failure *failure)
{
    for (int32_t i = 0; i < unit->num; i++) {
        struct kt_range range = unit->ranges[i];
        range.end = range.begin + smaller((uint64_t)(range.end - range.begin), bytes);
        bytes -= (uint64_t)(range.end - range.begin);
        if (!read_range(w, range, index, failure))
            return false;
    }
    return true;
}

static void give_up(struct kt_window *w, int32_t index)
{
    const struct kt_ranges *unit = &w->units[index];
    w->held[index] = false;
    pthread_mutex_unlock(&w->lock);
    kt_window_drop(w->checkpoint, unit);
    pthread_mutex_lock(&w->lock);
}

static void bring(struct kt_window *w, int32_t index)
{
    const struct kt_ranges *units = w->units, *unit = &units[index];
    uint64_t bytes = smaller(unit->bytes, w->state.budget);
    struct failure failure = {0};
    pthread_mutex_unlock(&w->lock);
    bool whole = read_unit(w, unit, index, bytes, &failure);
    if (!whole)
        kt_window_drop(w->checkpoint, unit);
    pthread_mutex_lock(&w->lock);
    if (w->units != units) {
        kt_window_drop(w->checkpoint, unit);
        return;
    }
    w->held[index] = whole;
    if (failure.error) {
        w->failed = index;
        w->failure = failure;
    }
    pthread_cond_broadcast(&w->done);
}

/** Does the next thing, if there is one to do. */
static bool advance(struct kt_window *w)
{
    if (!w->units || w->failed != NONE)
        return false;
    struct kt_walk_move move = kt_walk_next(&w->state);
    if (move.what == KT_WALK_DROP)
        give_up(w, move.unit);
    else if (move.what == KT_WALK_READ)
        bring(w, move.unit);
    return move.what != KT_WALK_WAIT;
}

static void *serve(void *arg)
{
    struct kt_window *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!atomic_load(&w->ends))
        if (!advance(w))
            pthread_cond_wait(&w->wake, &w->lock);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* -- its master -------------------------------------------------------------------------------- */

static void free_window(struct kt_window *w)
{
    if (!w)
        return;
    free(w->held);
    free(w->bytes);
    free(w->buffer);
    free(w);
}

kt_status kt_window_create(const struct kt_checkpoint *checkpoint, int32_t num,
                           struct kt_window **out)
{
    struct kt_window *w = calloc(1, sizeof *w);
    pthread_condattr_t clock;
    *out = w;
    if (w) {
        w->held = calloc((size_t)num, sizeof *w->held);
        w->bytes = calloc((size_t)num, sizeof *w->bytes);
        w->buffer = malloc(KT_FETCH_BYTES);
    }
    if (!w || !w->held || !w->bytes || !w->buffer) {
        free_window(w);
        *out = NULL;
        return kt_fail_memory(checkpoint->ctx, KT_FETCH_BYTES + 9 * (uint64_t)num, "reading ahead");
    }
    w->checkpoint = checkpoint;
    w->state = (struct kt_walk_state){.num = num, .bytes = w->bytes, .held = w->held};
    w->failed = NONE;
    atomic_init(&w->wanted, NONE);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->done, &clock);
    pthread_condattr_destroy(&clock);
    return KT_OK;
}

void kt_window_free(struct kt_window *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->ends, true);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    if (w->started)
        pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->wake);
    pthread_cond_destroy(&w->done);
    pthread_mutex_destroy(&w->lock);
    free_window(w);
}

static bool is_missing(const struct kt_window *w, int32_t unit)
{
    return w->bytes[unit] && !w->held[unit];
}

/** Waits a tenth of a second at most. */
static void wait_a_little(struct kt_window *w)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&w->done, &w->lock, &until);
}

/** Under the lock, which it gives up meanwhile. */
static kt_status await(struct kt_window *w, int32_t unit)
{
    kt_status status = KT_OK;
    atomic_store(&w->wanted, unit);
    while (status == KT_OK && w->started && is_missing(w, unit) && w->failed != unit) {
        if (w->failed != NONE) { /* another unit, which a walk that was left had asked for */
            w->failed = NONE;
            pthread_cond_signal(&w->wake);
        }
        wait_a_little(w);
        pthread_mutex_unlock(&w->lock);
        status = kt_check_cancel(w->checkpoint->ctx);
        pthread_mutex_lock(&w->lock);
    }
    atomic_store(&w->wanted, NONE);
    return status;
}

static void set_units(struct kt_window *w, const struct kt_ranges *units)
{
    if (units == w->units)
        return;
    for (int32_t u = 0; w->units && u < w->state.num; u++)
        if (w->held[u])
            kt_window_drop(w->checkpoint, &w->units[u]);
    w->units = units;
    for (int32_t u = 0; u < w->state.num; u++) {
        w->bytes[u] = units[u].bytes;
        w->held[u] = false;
    }
}

kt_status kt_window_enter(struct kt_window *w, const struct kt_ranges *units, enum kt_walk walk,
                          int32_t unit, uint64_t budget)
{
    struct failure failure = {0};
    pthread_mutex_lock(&w->lock);
    if (!w->started)
        w->started = kt_thread_start(&w->thread, serve, w) == 0;
    set_units(w, units);
    w->state.walk = walk;
    w->state.at = unit;
    w->state.budget = budget;
    if (w->failed != unit)
        w->failed = NONE;
    pthread_cond_signal(&w->wake);
    kt_status status = await(w, unit);
    if (w->failed == unit) {
        failure = w->failure;
        w->failed = NONE;
    }
    pthread_mutex_unlock(&w->lock);
    return failure.error ? report(w->checkpoint, &failure) : status;
}

void kt_window_forget(struct kt_window *w)
{
    pthread_mutex_lock(&w->lock);
    w->units = NULL;
    pthread_mutex_unlock(&w->lock);
}

bool kt_window_holds(struct kt_window *w, int32_t unit)
{
    pthread_mutex_lock(&w->lock);
    bool holds = w->units && !is_missing(w, unit);
    pthread_mutex_unlock(&w->lock);
    return holds;
}

/* -- at once ----------------------------------------------------------------------------------- */

struct reading {
    const struct kt_checkpoint *checkpoint;
    const struct kt_range *ranges;
    struct failure *failures; /**< of each range */
};

static void read_ranges(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct reading *r = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        r->failures[i] = (struct failure){r->ranges[i], fetch(r->checkpoint, r->ranges[i], NULL)};
}

kt_status kt_window_read(const struct kt_checkpoint *c, const struct kt_ranges *ranges)
{
    struct reading r = {c, ranges->ranges, calloc((size_t)ranges->num + 1, sizeof *r.failures)};
    kt_status status = KT_OK;
    if (!r.failures)
        return kt_fail_memory(c->ctx, (uint64_t)ranges->num * sizeof *r.failures, "reading ahead");
    for (int32_t i = 0; i < ranges->num; i++)
        kt_want_pages(ranges->ranges[i]);
    kt_parallel_for(c->ctx->pool, ranges->num, 1, read_ranges, &r);
    for (int32_t i = 0; i < ranges->num && status == KT_OK; i++)
        if (r.failures[i].error)
            status = report(c, &r.failures[i]);
    free(r.failures);
    return status;
}
