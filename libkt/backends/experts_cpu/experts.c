/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/experts_cpu/experts.h"

#include <stdlib.h>
#include <string.h>

#include "backend/slots.h"
#include "core/memory.h"

enum { CHUNK_BYTES = 128 << 20, TOKENS_A_TASK = 16, TASKS_A_THREAD = 8 };

static uint64_t thread_bytes(const struct kt_expert_call *c)
{
    uint64_t panels = kt_gemm_panel_bytes(c->kernel);
    if (panels < kt_gemm_panel_bytes(&c->kernels->f32))
        panels = kt_gemm_panel_bytes(&c->kernels->f32);
    uint64_t tile = KT_EXPERT_BLOCK_ROWS * KT_EXPERT_BLOCK_COLS * sizeof(float);
    return (panels + 63) / 64 * 64 + 4 * tile +
           2 * (uint64_t)c->max_rank * KT_EXPERT_BLOCK_COLS * sizeof(float);
}

struct kt_expert_thread kt_expert_thread_scratch(const struct kt_expert_call *c, int32_t thread)
{
    int64_t tile = KT_EXPERT_BLOCK_ROWS * KT_EXPERT_BLOCK_COLS;
    char *at = c->threads + (uint64_t)thread * c->thread_bytes;
    struct kt_expert_thread t = {.gate = (float *)(void *)at};
    t.up = t.gate + tile;
    t.dh = t.up + tile;
    t.tile = t.dh + tile;
    t.left = t.tile + tile;
    t.sum = t.left + c->max_rank * KT_EXPERT_BLOCK_COLS;
    t.panels = t.sum + c->max_rank * KT_EXPERT_BLOCK_COLS;
    return t;
}

static void measure(struct kt_expert_call *c)
{
    c->hidden = c->layer->hidden_size;
    c->inter = c->layer->intermediate_size;
    c->hidden_stride = kt_gemm_row_stride(c->kernel, c->hidden);
    c->inter_stride = kt_gemm_row_stride(c->kernel, c->inter);
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        for (int32_t e = 0; c->layer->lora[which] && e < c->layer->num_experts; e++) {
            const struct kt_lora_pair *lora = &c->layer->lora[which][e];
            if (!lora->a)
                continue;
            c->has_lora[which] = 1;
            c->max_rank = kt_max_i64(c->max_rank, lora->rank);
        }
    }
    c->thread_bytes = thread_bytes(c);
}

/* Places buffers for `rows` rows one after another from `memory`; returns the bytes they take. */
static uint64_t place_rows(struct kt_expert_call *c, int64_t rows, int backward, char *memory)
{
    uint64_t at = 0;
    int any = 0;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        any |= c->has_lora[which];
    uint64_t element = (uint64_t)c->kernel->element_size, n = (uint64_t)rows;
    struct {
        void *pointer;
        int needed;
        uint64_t bytes;
    } list[] = {
        {&c->x, 1, n * (uint64_t)c->hidden_stride * element},
        {&c->h, 1, n * (uint64_t)c->inter_stride * element},
        {&c->out, 1, n * (uint64_t)c->hidden * sizeof(float)},
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

static int64_t chunk_rows(struct kt_expert_call *c, const struct kt_llamafile_experts *llamafile,
                          int64_t slots, int backward)
{
    uint64_t rows = llamafile->chunk_bytes / place_rows(c, 1, backward, NULL);
    return kt_min_i64(slots, kt_max_i64((int64_t)rows, KT_EXPERT_MIN_CHUNK_ROWS));
}

/* Bytes of the index arrays: order, position, first, experts, blocks. */
static uint64_t index_bytes(const struct kt_expert_call *c, int64_t slots, int64_t rows)
{
    uint64_t experts = (uint64_t)c->layer->num_experts;
    uint64_t blocks = 2 * experts + (uint64_t)kt_blocks(rows, KT_EXPERT_BLOCK_ROWS);
    return 2 * (uint64_t)slots * sizeof(int32_t) + (experts + 1) * sizeof(int64_t) +
           blocks * sizeof(struct kt_expert_rows) + 64;
}

static void place_index(struct kt_expert_call *c, int64_t slots, int64_t rows, char *memory)
{
    int64_t experts = c->layer->num_experts;
    c->first = (int64_t *)(void *)memory;
    c->experts = (struct kt_expert_rows *)(c->first + experts + 1);
    c->blocks = c->experts + experts;
    c->order = (int32_t *)(void *)(memory + index_bytes(c, 0, rows));
    c->position = c->order + slots;
}

static void sort_slots(struct kt_expert_call *c, int64_t slots)
{
    kt_slots_sort(c->batch, c->layer->num_experts, c->first, c->order);
    for (int64_t row = 0; row < slots; row++)
        c->position[c->order[row]] = (int32_t)row;
}

/* Backward of few rows reads pieces of the weights' rows as they lie: the longer, the faster, as
 * long as every thread has some and every node its own. */
static int64_t block_cols(const struct kt_expert_call *c, int64_t rows)
{
    struct kt_gemm_right w = kt_gemm_right_weight(&c->layer->weights[KT_EXPERT_DOWN][0], 0);
    int64_t features = kt_min_i64(c->hidden, c->inter), cols = KT_EXPERT_BLOCK_COLS;
    int64_t most = KT_EXPERT_BLOCK_ROWS * KT_EXPERT_BLOCK_COLS / rows;
    int64_t tasks = TASKS_A_THREAD * (int64_t)kt_pool_num_threads(c->pool);
    if (!c->dy || kt_gemm_way(c->kernel, rows, &w) != KT_GEMM_DIRECT)
        return cols;
    while (2 * cols <= most && cols < features &&
           c->num_blocks * kt_blocks(features, 2 * cols) >= tasks &&
           kt_blocks(features, 2 * cols) >= kt_pool_num_nodes(c->pool))
        cols *= 2;
    return cols;
}

/* Experts of the chunk, each cut into row blocks of about the same size. */
static void cut_chunk(struct kt_expert_call *c)
{
    int64_t most = 0;
    c->num_experts = c->num_blocks = 0;
    for (int32_t e = 0; e < c->layer->num_experts; e++) {
        int64_t from = kt_max_i64(c->first[e], c->begin), to = kt_min_i64(c->first[e + 1], c->end);
        if (from >= to)
            continue;
        most = kt_max_i64(most, to - from);
        c->experts[c->num_experts++] = (struct kt_expert_rows){e, from - c->begin, to - from};
        int64_t pieces = kt_blocks(to - from, KT_EXPERT_BLOCK_ROWS);
        for (int64_t i = 0; i < pieces; i++) {
            int64_t first = from + (to - from) * i / pieces;
            int64_t last = from + (to - from) * (i + 1) / pieces;
            c->blocks[c->num_blocks++] = (struct kt_expert_rows){e, first - c->begin, last - first};
        }
    }
    c->block_cols = block_cols(c, most);
}

static kt_status run(struct kt_experts *e, struct kt_expert_call *c, int backward)
{
    struct kt_llamafile_experts *llamafile = (struct kt_llamafile_experts *)e;
    int64_t slots = c->batch->tokens * c->batch->topk;
    if (!slots)
        return KT_OK;
    c->pool = e->ctx->pool;
    c->kernels = &llamafile->kernels;
    c->kernel = kt_gemm_kernel_for(&llamafile->kernels, c->batch->compute);
    measure(c);
    int64_t rows = chunk_rows(c, llamafile, slots, backward);
    uint64_t row_bytes = place_rows(c, rows, backward, NULL);
    char *memory;
    KT_TRY(kt_scratch_get_threads(&llamafile->scratch, c->thread_bytes,
                                  row_bytes + index_bytes(c, slots, rows), "the routed experts",
                                  &c->threads, &memory));
    place_rows(c, rows, backward, memory);
    place_index(c, slots, rows, memory + row_bytes);
    sort_slots(c, slots);
    for (c->begin = 0; c->begin < slots; c->begin = c->end) {
        c->end = kt_min_i64(c->begin + rows, slots);
        cut_chunk(c);
        if (backward)
            kt_expert_chunk_backward(c);
        else
            kt_expert_chunk_forward(c);
    }
    return KT_OK;
}

struct gather {
    const struct kt_expert_call *c;
    const float *from;
    char *to;
};

static void gather_rows(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct gather *g = arg;
    const struct kt_expert_call *c = g->c;
    (void)thread;
    for (int64_t r = begin; r < end; r++)
        c->kernel->convert(c->hidden, g->from + kt_expert_token(c, r) * c->hidden,
                           g->to + r * c->hidden_stride * c->kernel->element_size);
}

void kt_expert_gather(struct kt_expert_call *c, const float *from, char *to)
{
    struct gather g = {c, from, to};
    kt_parallel_for(c->pool, c->end - c->begin, TOKENS_A_TASK, gather_rows, &g);
}

struct scatter {
    const struct kt_expert_call *c;
    int weighted;
};

static void scatter_tokens(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct scatter *s = arg;
    const struct kt_expert_call *c = s->c;
    int32_t topk = c->batch->topk;
    (void)thread;
    for (int64_t slot = begin * topk; slot < end * topk; slot++) {
        if (c->position[slot] < c->begin || c->position[slot] >= c->end)
            continue;
        float weight = s->weighted ? c->batch->topk_weights[slot] : 1.0f;
        c->kernels->row.scale_add(c->hidden, weight,
                                  c->out + (c->position[slot] - c->begin) * c->hidden, 1,
                                  c->sum + slot / topk * c->hidden);
    }
}

void kt_expert_scatter(struct kt_expert_call *c, int weighted)
{
    struct scatter s = {c, weighted};
    kt_parallel_for(c->pool, c->batch->tokens, TOKENS_A_TASK, scatter_tokens, &s);
}

static kt_status llamafile_forward(struct kt_experts *e, const struct kt_expert_layer *layer,
                                   const struct kt_expert_batch *batch, float *y)
{
    struct kt_expert_call c = {.layer = layer, .batch = batch, .sum = y};
    return run(e, &c, 0);
}

static kt_status llamafile_backward(struct kt_experts *e, const struct kt_expert_layer *layer,
                                    const struct kt_expert_batch *batch, const float *dy, float *dx,
                                    float *dtopk_weights)
{
    struct kt_expert_call c = {
        .layer = layer, .batch = batch, .dy = dy, .sum = dx, .dtopk_weights = dtopk_weights};
    return run(e, &c, 1);
}

static uint64_t llamafile_scratch_bytes(const struct kt_experts *e,
                                        const struct kt_expert_layer *layer, int64_t tokens,
                                        int32_t topk)
{
    const struct kt_llamafile_experts *llamafile = (const struct kt_llamafile_experts *)e;
    struct kt_expert_call c = {.kernels = &llamafile->kernels, .layer = layer};
    uint64_t threads = (uint64_t)kt_pool_num_threads(e->ctx->pool), most = 0;
    for (int call = 0; call < 4; call++) {
        int compute = call / 2, backward = call % 2; /* forward has more rows in a chunk */
        c.kernel = kt_gemm_kernel_for(&llamafile->kernels, (kt_compute)compute);
        measure(&c);
        int64_t rows = chunk_rows(&c, llamafile, tokens * topk, backward);
        uint64_t bytes = place_rows(&c, rows, backward, NULL) + threads * c.thread_bytes +
                         index_bytes(&c, tokens * topk, rows);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static void llamafile_close(struct kt_experts *e)
{
    kt_scratch_free(&((struct kt_llamafile_experts *)e)->scratch);
    free(e);
}

static const struct kt_experts_ops llamafile_ops = {
    .name = "llamafile",
    .forward = llamafile_forward,
    .backward = llamafile_backward,
    .scratch_bytes = llamafile_scratch_bytes,
    .close = llamafile_close,
};

kt_status kt_llamafile_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_llamafile_experts *e = calloc(1, sizeof *e);
    if (!e)
        return kt_fail_memory(ctx, sizeof *e, "the experts backend");
    e->base.ops = &llamafile_ops;
    e->base.ctx = ctx;
    e->scratch.ctx = ctx;
    e->chunk_bytes = CHUNK_BYTES;
    kt_kernels_init(&e->kernels, ctx->cpu.isa);
    *out = &e->base;
    return KT_OK;
}
