/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/experts_cpu/experts.h"

#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

enum { CHUNK_BYTES = 128 << 20, TOKENS_A_TASK = 16, TASKS_A_THREAD = 8 };

static uint64_t thread_bytes(const struct kt_experts_cpu_call *c)
{
    uint64_t panels = kt_gemm_panel_bytes(c->kernel);
    if (panels < kt_gemm_panel_bytes(&c->kernels->f32))
        panels = kt_gemm_panel_bytes(&c->kernels->f32);
    uint64_t tile = KT_EXPERT_BLOCK_ROWS * KT_EXPERT_BLOCK_COLS * sizeof(float);
    return (panels + 63) / 64 * 64 + 4 * tile +
           2 * (uint64_t)c->max_rank * KT_EXPERT_BLOCK_COLS * sizeof(float);
}

struct kt_experts_cpu_thread kt_experts_cpu_thread_scratch(const struct kt_experts_cpu_call *c,
                                                           int32_t thread)
{
    int64_t tile = KT_EXPERT_BLOCK_ROWS * KT_EXPERT_BLOCK_COLS;
    char *at = c->threads + (uint64_t)thread * c->thread_bytes;
    struct kt_experts_cpu_thread t = {.gate = (float *)(void *)at};
    t.up = t.gate + tile;
    t.dh = t.up + tile;
    t.tile = t.dh + tile;
    t.left = t.tile + tile;
    t.sum = t.left + c->max_rank * KT_EXPERT_BLOCK_COLS;
    t.panels = t.sum + c->max_rank * KT_EXPERT_BLOCK_COLS;
    return t;
}

static struct kt_experts_cpu_call begin_call(const struct kt_experts *e,
                                             const struct kt_expert_layer *layer,
                                             kt_compute compute, bool backward)
{
    const struct kt_experts_cpu *cpu = (const struct kt_experts_cpu *)e;
    struct kt_experts_cpu_call c = {.layer = layer,
                                    .pool = e->ctx->pool,
                                    .kernels = &cpu->kernels,
                                    .kernel = kt_gemm_kernel_for(&cpu->kernels, compute),
                                    .backward = backward,
                                    .hidden = layer->hidden_size,
                                    .inter = layer->intermediate_size};
    c.hidden_stride = kt_gemm_row_stride(c.kernel, c.hidden);
    c.inter_stride = kt_gemm_row_stride(c.kernel, c.inter);
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        for (int32_t i = 0; layer->lora[which] && i < layer->num_experts; i++) {
            const struct kt_lora_pair *lora = &layer->lora[which][i];
            if (!lora->a)
                continue;
            c.has_lora[which] = true;
            c.max_rank = kt_max_i64(c.max_rank, lora->rank);
        }
    }
    c.thread_bytes = thread_bytes(&c);
    return c;
}

/* Places buffers for `rows` rows one after another from `memory`; returns the bytes they take. */
static uint64_t place_rows(struct kt_experts_cpu_call *c, int64_t rows, char *memory)
{
    uint64_t at = 0;
    bool any = false, backward = c->backward;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        any |= c->has_lora[which];
    uint64_t element = (uint64_t)c->kernel->element_size, n = (uint64_t)rows;
    struct {
        void *pointer;
        bool needed;
        uint64_t bytes;
    } list[] = {
        {&c->x_rows, true, n * (uint64_t)c->hidden_stride * element},
        {&c->h, true, n * (uint64_t)c->inter_stride * element},
        {&c->out, true, n * (uint64_t)c->hidden * sizeof(float)},
        {&c->dy_rows, backward, n * (uint64_t)c->hidden_stride * element},
        {&c->dup, backward, n * (uint64_t)c->inter_stride * element},
        {&c->partial, backward,
         n * (uint64_t)kt_blocks(c->inter, KT_EXPERT_BLOCK_COLS) * sizeof(float)},
        {&c->h_full, c->has_lora[KT_EXPERT_DOWN], n * (uint64_t)c->inter * sizeof(float)},
        {&c->dgate_full, backward && any, n * (uint64_t)c->inter * sizeof(float)},
        {&c->dup_full, backward && any, n * (uint64_t)c->inter * sizeof(float)},
        {&c->low[0], c->has_lora[0], n * (uint64_t)c->max_rank * sizeof(float)},
        {&c->low[1], c->has_lora[1], n * (uint64_t)c->max_rank * sizeof(float)},
        {&c->low[2], c->has_lora[2], n * (uint64_t)c->max_rank * sizeof(float)},
        {&c->dlow[0], backward && c->has_lora[0], n * (uint64_t)c->max_rank * sizeof(float)},
        {&c->dlow[1], backward && c->has_lora[1], n * (uint64_t)c->max_rank * sizeof(float)},
        {&c->dlow[2], backward && c->has_lora[2], n * (uint64_t)c->max_rank * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (!list[i].needed)
            continue;
        char *pointer = memory ? memory + at : NULL;
        memcpy(list[i].pointer, &pointer, sizeof pointer);
        at += (list[i].bytes + 63) / 64 * 64;
    }
    return at;
}

static int64_t chunk_rows(struct kt_experts_cpu_call *c, uint64_t chunk_bytes, int64_t rows)
{
    uint64_t most = chunk_bytes / place_rows(c, 1, NULL);
    return kt_min_i64(rows, kt_max_i64((int64_t)most, KT_EXPERT_PIECE_ROWS));
}

/* Bytes of the lists of experts and blocks of a chunk. */
static uint64_t index_bytes(const struct kt_experts_cpu_call *c, int64_t rows)
{
    uint64_t experts = (uint64_t)c->layer->num_experts;
    uint64_t blocks = 2 * experts + (uint64_t)kt_blocks(rows, KT_EXPERT_BLOCK_ROWS);
    return blocks * sizeof(struct kt_experts_cpu_rows);
}

/* Backward of few rows reads pieces of the weights' rows as they lie: the longer, the faster, as
 * long as every thread has some and every node its own. */
static int64_t block_cols(const struct kt_experts_cpu_call *c, int64_t rows, int64_t all)
{
    struct kt_gemm_right w = kt_gemm_right_weight(&c->layer->weights[KT_EXPERT_DOWN][0], 0);
    int64_t features = kt_min_i64(c->hidden, c->inter), cols = KT_EXPERT_BLOCK_COLS;
    int64_t most = KT_EXPERT_BLOCK_ROWS * KT_EXPERT_BLOCK_COLS / rows;
    int64_t tasks = TASKS_A_THREAD * (int64_t)kt_pool_num_threads(c->pool);
    if (!c->backward || kt_gemm_way(c->kernel, all, &w) != KT_GEMM_DIRECT)
        return cols;
    while (2 * cols <= most && cols < features &&
           c->num_blocks * kt_blocks(features, 2 * cols) >= tasks &&
           kt_blocks(features, 2 * cols) >= kt_pool_num_nodes(c->pool))
        cols *= 2;
    return cols;
}

static void cut_expert(struct kt_experts_cpu_call *c, int32_t e, int64_t from, int64_t to)
{
    int64_t all = c->routing->first[e + 1] - c->routing->first[e];
    int64_t pieces = kt_blocks(to - from, KT_EXPERT_BLOCK_ROWS);
    c->experts[c->num_experts++] = (struct kt_experts_cpu_rows){e, from - c->begin, to - from, all};
    for (int64_t i = 0; i < pieces; i++) {
        int64_t first = from + (to - from) * i / pieces;
        int64_t last = from + (to - from) * (i + 1) / pieces;
        c->blocks[c->num_blocks++] =
            (struct kt_experts_cpu_rows){e, first - c->begin, last - first, all};
    }
}

/* Ends the chunk that begins at `begin`, of at most `rows` rows, with an expert or a piece of one,
 * and cuts each expert of it into row blocks of about the same size. */
static void cut_chunk(struct kt_experts_cpu_call *c, int64_t rows)
{
    const int64_t *first = c->routing->first;
    int64_t most = 1, all = 1, limit = kt_min_i64(c->begin + rows, first[c->layer->num_experts]);
    c->num_experts = c->num_blocks = 0;
    c->end = limit;
    for (int32_t e = 0; e < c->layer->num_experts && first[e] < limit; e++) {
        int64_t from = kt_max_i64(first[e], c->begin), to = first[e + 1];
        if (to > limit)
            to = c->end = limit - (limit - first[e]) % KT_EXPERT_PIECE_ROWS;
        if (from >= to)
            continue;
        most = kt_max_i64(most, to - from);
        all = kt_max_i64(all, first[e + 1] - first[e]);
        cut_expert(c, e, from, to);
    }
    c->block_cols = block_cols(c, most, all);
}

static void run(struct kt_experts *e, struct kt_experts_cpu_call *c)
{
    struct kt_experts_cpu *cpu = (struct kt_experts_cpu *)e;
    int64_t total = c->routing->first[c->layer->num_experts];
    int64_t rows = chunk_rows(c, cpu->chunk_bytes, total);
    if (!total)
        return;
    c->threads = c->given->scratch;
    kt_bind_thread_scratch(c->pool, &cpu->bound, c->threads, c->thread_bytes);
    char *memory = c->threads + (uint64_t)kt_pool_num_threads(c->pool) * c->thread_bytes;
    memory += place_rows(c, rows, memory);
    c->experts = (struct kt_experts_cpu_rows *)(void *)memory;
    c->blocks = c->experts + c->layer->num_experts;
    for (c->begin = 0; c->begin < total; c->begin = c->end) {
        cut_chunk(c, rows);
        if (c->backward)
            kt_experts_cpu_chunk_backward(c);
        else
            kt_experts_cpu_chunk_forward(c);
    }
}

struct gather {
    const struct kt_experts_cpu_call *c;
    struct kt_view from;
    char *to;
};

static void gather_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct gather *g = arg;
    const struct kt_experts_cpu_call *c = g->c;
    (void)thread;
    for (int64_t r = begin; r < end; r++)
        c->kernel->convert(c->hidden, kt_experts_cpu_row(g->from, kt_experts_cpu_token(c, r)),
                           g->to + r * c->hidden_stride * c->kernel->element_size);
}

void kt_experts_cpu_gather(struct kt_experts_cpu_call *c, struct kt_view from, char *to)
{
    struct gather g = {c, from, to};
    kt_parallel_for(c->pool, c->end - c->begin, TOKENS_A_TASK, gather_rows, &g);
}

/* A token's rows come in ascending order, here and from chunk to chunk. */
static void scatter_tokens(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_experts_cpu_call *c = arg;
    const struct kt_routing *r = c->routing;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        for (int32_t j = 0; j < r->topk && r->rows[token * r->topk + j] >= 0; j++) {
            int64_t row = r->rows[token * r->topk + j] - c->begin;
            if (row < 0 || row >= c->end - c->begin)
                continue;
            float weight = c->backward ? 1.0f : r->weights[kt_experts_cpu_slot(c, row)];
            c->kernels->row.scale_add(c->hidden, weight, c->out + row * c->hidden, true,
                                      kt_experts_cpu_row(c->sum, token));
        }
    }
}

void kt_experts_cpu_scatter(struct kt_experts_cpu_call *c)
{
    kt_parallel_for(c->pool, c->routing->tokens, TOKENS_A_TASK, scatter_tokens, c);
}

static void experts_cpu_forward(struct kt_experts *e, const struct kt_expert_call *call,
                                struct kt_view y)
{
    struct kt_experts_cpu_call c = begin_call(e, call->layer, call->compute, false);
    c.given = call;
    c.routing = call->routing;
    c.x = call->x;
    c.sum = y;
    run(e, &c);
}

static void experts_cpu_backward(struct kt_experts *e, const struct kt_expert_call *call,
                                 struct kt_view dy, struct kt_view dx, float *dweights)
{
    struct kt_experts_cpu_call c = begin_call(e, call->layer, call->compute, true);
    c.given = call;
    c.routing = call->routing;
    c.x = call->x;
    c.dy = dy;
    c.sum = dx;
    c.dweights = dweights;
    run(e, &c);
}

static bool experts_cpu_supports(const struct kt_experts *e, const struct kt_expert_layer *layer,
                                 kt_compute compute, int64_t tokens, bool training)
{
    (void)e, (void)layer, (void)compute, (void)tokens, (void)training;
    return true;
}

static uint64_t experts_cpu_scratch_bytes(const struct kt_experts *e,
                                          const struct kt_expert_layer *layer, kt_compute compute,
                                          int64_t tokens, int32_t topk, bool backward)
{
    const struct kt_experts_cpu *cpu = (const struct kt_experts_cpu *)e;
    struct kt_experts_cpu_call c = begin_call(e, layer, compute, backward);
    int64_t rows = chunk_rows(&c, cpu->chunk_bytes, tokens * topk);
    return (uint64_t)kt_pool_num_threads(c.pool) * c.thread_bytes + place_rows(&c, rows, NULL) +
           index_bytes(&c, rows);
}

/* Rough, until measured where it runs: bfloat16 products of vectors. */
static double experts_cpu_seconds(const struct kt_experts *e, const struct kt_expert_layer *layer,
                                  int64_t rows, bool backward)
{
    static const struct kt_experts_rate forward_rate = {8e9, 80e9}, backward_rate = {7e9, 60e9};
    return kt_experts_seconds(e, layer, rows, backward ? backward_rate : forward_rate);
}

static void experts_cpu_close(struct kt_experts *e)
{
    free(e);
}

static const struct kt_experts_ops experts_cpu_ops = {
    .abi = KT_BACKEND_ABI,
    .name = "cpu",
    .supports = experts_cpu_supports,
    .scratch_bytes = experts_cpu_scratch_bytes,
    .forward = experts_cpu_forward,
    .backward = experts_cpu_backward,
    .seconds = experts_cpu_seconds,
    .close = experts_cpu_close,
};

kt_status kt_experts_cpu_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_experts_cpu *e = calloc(1, sizeof *e);
    if (!e)
        return kt_fail_memory(ctx, sizeof *e, "the experts backend");
    e->base.ops = &experts_cpu_ops;
    e->base.ctx = ctx;
    e->chunk_bytes = CHUNK_BYTES;
    kt_kernels_init(&e->kernels, ctx->cpu.isa);
    *out = &e->base;
    return KT_OK;
}
