/* SPDX-License-Identifier: Apache-2.0 */
/** \file unit/expert_problem.h
 * For tests of the experts backends with tiles: random layers and batches, and a call of forward
 * and backward. Weights, activations and results each end where a page begins that may not be
 * touched. */
#ifndef KT_TESTS_UNIT_EXPERT_PROBLEM_H
#define KT_TESTS_UNIT_EXPERT_PROBLEM_H

#include <sys/mman.h>
#include <unistd.h>

#include "backends/amx/experts.h"
#include "compare.h"
#include "expert_call.h"
#include "main.h"
#include "weights/dtype.h"

enum { MAX_EXPERTS = 20, MAX_BUFFERS = 512 };

enum routing { SPREAD, ALL_TO_ONE, TWICE_IN_A_ROW };

struct shape {
    int32_t experts, hidden, inter, tokens, topk;
    enum routing routing;
};

/* -- memory that ends at a page that may not be touched -----------------------------------------
 */

static struct {
    char *pages;
    size_t bytes;
} buffers[MAX_BUFFERS];
static int num_buffers;

static inline void *guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (bytes + page - 1) / page * page;
    char *pages =
        mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(pages != MAP_FAILED);
    ck_assert_int_eq(mprotect(pages + size, page, PROT_NONE), 0);
    ck_assert_int_lt(num_buffers, MAX_BUFFERS);
    buffers[num_buffers].pages = pages;
    buffers[num_buffers++].bytes = size + page;
    return pages + size - bytes;
}

static inline void free_buffers(void)
{
    while (num_buffers > 0) {
        num_buffers--;
        munmap(buffers[num_buffers].pages, buffers[num_buffers].bytes);
    }
}

static inline float *guarded_random(uint64_t seed, int64_t n)
{
    float *x = guarded((size_t)n * sizeof *x);
    test_fill(seed, n, x);
    return x;
}

/* -- one layer ----------------------------------------------------------------------------------
 */

struct problem {
    struct kt_weight weights[KT_EXPERT_LINEARS][MAX_EXPERTS];
    struct kt_expert_layer layer;
    int64_t tokens;
    int32_t topk;
    const int32_t *ids;
    float *topk_weights, *x, *dy;
    kt_compute compute;
    bool conversation; /* nothing is trained */
};

static inline void *random_bf16(uint64_t seed, int64_t n, float scale)
{
    float *full = test_random(seed, n);
    uint16_t *half = guarded((size_t)n * sizeof *half);
    for (int64_t i = 0; i < n; i++)
        half[i] = kt_f32_to_bf16(full[i] * scale);
    free(full);
    return half;
}

static inline int32_t choose_expert(const struct shape *s, int64_t slot)
{
    int64_t token = slot / s->topk, j = slot % s->topk;
    if (s->routing == ALL_TO_ONE)
        return s->experts / 2;
    if (s->routing == TWICE_IN_A_ROW)
        return (int32_t)((token + j / 2) % s->experts);
    /* Expert 1 gets nothing where there are others, the first gets most. */
    int64_t e = token % 3 == 0 ? j : token * 5 + j;
    e %= s->experts;
    return e == 1 ? 0 : (int32_t)e;
}

static inline void make_problem(struct problem *p, const struct shape *s)
{
    memset(p, 0, sizeof *p);
    p->layer = (struct kt_expert_layer){
        .num_experts = s->experts, .hidden_size = s->hidden, .intermediate_size = s->inter};
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        p->layer.weights[which] = p->weights[which];
        for (int e = 0; e < s->experts; e++) {
            int64_t rows = which == KT_EXPERT_DOWN ? s->hidden : s->inter;
            int64_t cols = which == KT_EXPERT_DOWN ? s->inter : s->hidden;
            p->weights[which][e] =
                (struct kt_weight){.data = random_bf16((uint64_t)(100 * which + e), rows * cols,
                                                       2 / sqrtf((float)cols)),
                                   .dtype = KT_DTYPE_BF16,
                                   .rows = rows,
                                   .cols = cols};
        }
    }
    int64_t slots = (int64_t)s->tokens * s->topk;
    int32_t *ids = guarded((size_t)slots * sizeof *ids);
    for (int64_t i = 0; i < slots; i++)
        ids[i] = choose_expert(s, i);
    p->tokens = s->tokens;
    p->topk = s->topk;
    p->ids = ids;
    p->topk_weights = guarded_random(3, slots);
    p->x = guarded_random(1, (int64_t)s->tokens * s->hidden);
    p->compute = KT_COMPUTE_BF16;
    p->dy = guarded_random(2, (int64_t)s->tokens * s->hidden);
}

static inline struct kt_routing route_problem(const struct problem *p)
{
    return test_route(p->tokens, p->topk, p->layer.num_experts, p->ids, p->topk_weights);
}

static inline struct kt_expert_call call_of(const struct problem *p,
                                            const struct kt_routing *routing, float *kept)
{
    return (struct kt_expert_call){.layer = &p->layer,
                                   .routing = routing,
                                   .compute = p->compute,
                                   .training = !p->conversation,
                                   .x = kt_view_f32(p->x, p->layer.hidden_size),
                                   .kept = kept};
}

struct outcome {
    float *y, *dx, *dtw, *kept; /* kept: NULL unless the setting keeps */
};

struct setting {
    const char *name;
    uint32_t isa_mask;
    int32_t threads;
    int small; /* groups of one block, small blocks and chunks; 2: blocks of 2 tiles at most */
    int32_t nodes;
    int keeps; /* gate and up products of forward */
    enum cut cut;
    uint64_t group_bytes; /* 0 = the backend's choice */
};

/* Results start from numbers that the sums must keep. */
static inline struct outcome run(const struct problem *p, const struct setting *with)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = with->threads;
    options.isa_mask = with->isa_mask;
    kt_context *ctx = machine_context(&options, with->nodes);
    int64_t n = p->tokens * p->layer.hidden_size, slots = p->tokens * p->topk;
    struct outcome o = {guarded_random(4, n), guarded_random(5, n), guarded_random(6, slots), NULL};
    if (with->keeps)
        o.kept = guarded((size_t)(slots * 2 * p->layer.intermediate_size) * sizeof(float));
    struct kt_routing routing = route_problem(p);
    struct kt_expert_call call = call_of(p, &routing, o.kept);
    struct kt_experts *experts = test_open(ctx, with->name, &call);
    if (with->small && strncmp(experts->ops->name, "amx", 3) == 0) {
        struct kt_amx_experts *amx = (struct kt_amx_experts *)experts;
        amx->group_bytes = 1;
        amx->forward_tiles = with->small == 1 ? 3 : 2, amx->backward_tiles = 2;
        amx->forward_chunk = 64, amx->backward_chunk = 32, amx->int8_chunk = 64;
    }
    if (with->group_bytes && strncmp(experts->ops->name, "amx", 3) == 0)
        ((struct kt_amx_experts *)experts)->group_bytes = with->group_bytes;
    test_run_parts(experts, call, with->cut, p->dy, o.y, o.dx, o.dtw);
    test_unroute(&routing);
    kt_experts_close(experts);
    ck_assert_uint_eq(kt_context_memory_peak(ctx), 0);
    kt_context_free(ctx);
    return o;
}

static inline struct outcome run_reference(const struct problem *p)
{
    struct problem full = *p;
    full.compute = KT_COMPUTE_F32;
    return run(&full, &(struct setting){.name = "reference", .threads = 2, .nodes = 1});
}

static inline void check_close(int64_t n, const float *got, const float *want, double tolerance)
{
    double *wide = test_widen(n, want);
    ck_assert_double_lt(test_error(n, got, wide), tolerance);
    free(wide);
}

static inline void check_same(const struct problem *p, const struct outcome *a,
                              const struct outcome *b)
{
    size_t n = (size_t)(p->tokens * p->layer.hidden_size) * sizeof(float);
    ck_assert(memcmp(a->y, b->y, n) == 0);
    ck_assert(memcmp(a->dx, b->dx, n) == 0);
    ck_assert(memcmp(a->dtw, b->dtw, (size_t)p->tokens * (size_t)p->topk * sizeof(float)) == 0);
}

/* With other threads and nodes than one of each. */
static inline void check_same_in_all_pools(const struct problem *p, struct setting with)
{
    static const struct {
        int32_t threads, nodes;
    } pools[] = {{2, 1}, {7, 1}, {2, 2}, {7, 3}};
    with.threads = with.nodes = 1;
    struct outcome one = run(p, &with);
    for (size_t i = SANITIZED ? 2 : 0; i < sizeof pools / sizeof *pools; i++) {
        with.threads = pools[i].threads;
        with.nodes = pools[i].nodes;
        struct outcome many = run(p, &with);
        check_same(p, &one, &many);
    }
}

/* In one call, in calls for shares of the experts, and in small groups. */
static inline void check_same_in_all_cuts(const struct problem *p, struct setting with)
{
    struct outcome whole = run(p, &with);
    for (with.cut = HALVES; with.cut <= SINGLE_EXPERTS; with.cut++) {
        struct outcome parts = run(p, &with);
        check_same(p, &whole, &parts);
    }
    with.cut = WHOLE;
    with.group_bytes = 1;
    struct outcome groups = run(p, &with);
    check_same(p, &whole, &groups);
}

static inline void round_to_bf16(int64_t n, const float *x)
{
    float *values = (float *)x;
    for (int64_t i = 0; i < n; i++)
        values[i] = kt_bf16_to_f32(kt_f32_to_bf16(values[i]));
}

/* -- weights in other formats -------------------------------------------------------------------
 */

struct format {
    kt_dtype dtype;
    int64_t scale_rows, scale_cols; /* 0 = no scale */
};

static inline float *random_scales(uint64_t seed, int64_t n)
{
    float *scales = guarded_random(seed, n);
    for (int64_t i = 0; i < n; i++)
        scales[i] = 0.002f * (2 + scales[i]);
    return scales;
}

/* Random elements of a format: codes of E4M3 without NaN and the largest, halves of moderate size.
 */
static inline void *random_elements(uint64_t seed, kt_dtype dtype, int64_t bytes)
{
    uint8_t *data = guarded((size_t)bytes);
    if (dtype == KT_DTYPE_F32) {
        float *x = (float *)(void *)data;
        test_fill(seed, bytes / 4, x);
        for (int64_t i = 0; i < bytes / 4; i++)
            x[i] *= 0.25f;
        return data;
    }
    for (int64_t i = 0; i < bytes; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        data[i] = (uint8_t)(seed >> 56);
        if (dtype == KT_DTYPE_F8_E4M3)
            data[i] &= 0xcf;
        if (dtype == KT_DTYPE_F16 && i % 2)
            data[i] = (data[i] & 0x83) | 0x28;
    }
    return data;
}

/* Gives every weight of p the format, and of `full` the decoded values, rounded to bfloat16. */
static inline void reformat(struct problem *p, struct problem *full, const struct format *format)
{
    kt_dtype dtype = format->dtype;
    *full = *p;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        p->layer.weights[which] = p->weights[which];
        full->layer.weights[which] = full->weights[which];
        for (int e = 0; e < p->layer.num_experts; e++) {
            struct kt_weight *w = &p->weights[which][e];
            uint64_t seed = (uint64_t)(100 * which + e);
            int64_t bytes = w->rows * (int64_t)kt_format_row_bytes(dtype, w->cols);
            *w = (struct kt_weight){.data = random_elements(seed, dtype, bytes),
                                    .dtype = dtype,
                                    .rows = w->rows,
                                    .cols = w->cols,
                                    .scale_rows = format->scale_rows,
                                    .scale_cols = format->scale_cols};
            if (w->scale_rows) {
                w->scale_ld = (w->cols + w->scale_cols - 1) / w->scale_cols;
                w->scale = random_scales(seed, (w->rows + w->scale_rows - 1) / w->scale_rows *
                                                   w->scale_ld);
            }
            float *values = guarded((size_t)(w->rows * w->cols) * sizeof *values);
            for (int64_t r = 0; r < w->rows; r++)
                kt_weight_decode(w, r, 0, w->cols, values + r * w->cols);
            round_to_bf16(w->rows * w->cols, values);
            full->weights[which][e] = (struct kt_weight){
                .data = values, .dtype = KT_DTYPE_F32, .rows = w->rows, .cols = w->cols};
        }
    }
}

/* In place of `full`'s weights those that are not rounded, of experts with at most `most` slots. */
static inline void decode_exactly(const struct problem *p, struct problem *full, int64_t most)
{
    int64_t slots = p->tokens * p->topk;
    for (int e = 0; e < p->layer.num_experts; e++) {
        int64_t count = 0;
        for (int64_t i = 0; i < slots; i++)
            count += p->ids[i] == e;
        for (int which = 0; which < KT_EXPERT_LINEARS && count <= most; which++) {
            struct kt_weight *w = &full->weights[which][e];
            float *values = guarded((size_t)(w->rows * w->cols) * sizeof *values);
            for (int64_t r = 0; r < w->rows; r++)
                kt_weight_decode(&p->weights[which][e], r, 0, w->cols, values + r * w->cols);
            w->data = values;
        }
    }
}

/* Under AddressSanitizer the first two builds, both emulated, take turns at the shapes. */
static inline bool emulation_has_turn(int build, int shape)
{
    return !SANITIZED || build > 1 || (build + shape) % 2 == 0;
}

static inline bool experts_exist(const char *name, uint32_t isa_mask)
{
    kt_context *ctx = test_context(1, isa_mask);
    struct kt_experts *experts;
    kt_status status = kt_experts_open(ctx, name, &experts);
    kt_experts_close(experts);
    kt_context_free(ctx);
    return status == KT_OK;
}

#endif
