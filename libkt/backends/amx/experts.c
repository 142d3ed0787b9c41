/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/amx/experts.h"

#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "core/memory.h"

enum {
    GROUP_BYTES = 256 << 20,
    FORWARD_TILES = 32,
    BACKWARD_TILES = 32,
    CHUNK = 256,
    INT8_CHUNK = 512,
    PAGE_BYTES = 4096,
    WIDE_LD = KT_AMX_WIDE_FEATURES + KT_AMX_PAD
};

/* -- scratch ----------------------------------------------------------------------------------- */

static uint64_t floats(int64_t n)
{
    return (uint64_t)n * sizeof(float);
}

static int64_t most_tiles(const struct kt_amx_experts *amx)
{
    return kt_max_i64(amx->forward_tiles, amx->backward_tiles);
}

/* A multiple of pages, so that the part of each thread begins at the same place of one. */
static uint64_t thread_bytes(const struct kt_amx_experts *amx)
{
    int64_t rows = most_tiles(amx) * KT_AMX_TOKENS;
    uint64_t products = floats(rows * KT_AMX_LD), parts = 3 * floats(rows * KT_AMX_LD);
    uint64_t bytes =
        KT_AMX_STAGE_BYTES + products + parts + floats(WIDE_LD) + (uint64_t)rows * sizeof(float *);
    return (uint64_t)kt_amx_blocks((int64_t)bytes, PAGE_BYTES) * PAGE_BYTES;
}

struct kt_amx_thread kt_amx_thread_scratch(const struct kt_amx_call *c, int32_t thread)
{
    struct kt_amx_thread t = {.stage = c->threads + (uint64_t)thread * c->thread_bytes};
    int64_t rows = most_tiles(c->amx) * KT_AMX_TOKENS * KT_AMX_LD;
    t.products = (float *)t.stage + KT_AMX_STAGE_BYTES / sizeof(float);
    t.gate = t.products + rows;
    t.up = t.gate + rows;
    t.dh = t.up + rows;
    t.h = t.dh + rows;
    t.rows = (float **)(void *)(t.h + WIDE_LD);
    return t;
}

/* Places buffers for `tiles` tiles one after another from `memory`; returns the bytes they take. */
static uint64_t place_tiles(struct kt_amx_call *c, int64_t tiles, char *memory)
{
    bool backward = c->backward;
    uint64_t n = (uint64_t)tiles, at = 0;
    uint64_t hidden = (uint64_t)c->hidden_steps * 1024, inter = (uint64_t)c->inter_steps * 1024;
    int64_t out = KT_AMX_TOKENS * kt_amx_out_ld(c);
    if (c->int8 && !backward)
        out = kt_max_i64(out, kt_amx_h_floats(c));
    struct {
        void *pointer;
        bool needed;
        uint64_t bytes;
    } list[] = {
        {&c->x.data, true, n * (uint64_t)c->x.bytes},
        {&c->x.scales, c->int8, n * floats(KT_AMX_TOKENS)},
        {&c->h.data, !backward, n * (uint64_t)c->h.bytes},
        {&c->h.scales, c->int8 && !backward, n * floats(KT_AMX_TOKENS)},
        {&c->dy_rows, backward, n * hidden},
        {&c->dgate, backward, n * inter},
        {&c->dup, backward, n * inter},
        {&c->out, true, n * floats(out)},
        {&c->partial, backward, n * floats(KT_AMX_TOKENS * c->inter_steps)},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (!list[i].needed)
            continue;
        char *pointer = memory ? memory + at : NULL;
        memcpy(list[i].pointer, &pointer, sizeof pointer);
        at += list[i].bytes;
    }
    return at;
}

/* An expert with n rows has at most n / 16 + 1 tiles. */
static int64_t tiles_bound(const struct kt_amx_call *c, int64_t rows)
{
    return rows / KT_AMX_TOKENS + kt_min_i64(rows, c->layer->num_experts);
}

static int64_t block_tiles(const struct kt_amx_call *c)
{
    return c->backward ? c->amx->backward_tiles : c->amx->forward_tiles;
}

static int64_t group_tiles(struct kt_amx_call *c, int64_t rows)
{
    uint64_t tiles = c->amx->group_bytes / place_tiles(c, 1, NULL);
    return kt_min_i64(tiles_bound(c, rows), kt_max_i64((int64_t)tiles, block_tiles(c)));
}

static int64_t blocks_bound(const struct kt_amx_call *c, int64_t rows)
{
    return tiles_bound(c, rows) / block_tiles(c) + kt_min_i64(rows, c->layer->num_experts);
}

static uint64_t index_bytes(const struct kt_amx_call *c, int64_t rows)
{
    return (uint64_t)blocks_bound(c, rows) * sizeof(struct kt_amx_block) +
           (uint64_t)c->layer->num_experts * sizeof(int64_t);
}

static bool multiplies_int8(const struct kt_amx_experts *amx, const struct kt_expert_layer *layer)
{
    if (!amx->int8.forward)
        return false;
    for (int which = 0; which < KT_EXPERT_LINEARS; which++)
        for (int32_t e = 0; e < layer->num_experts; e++)
            if (!kt_amx_is_int8(&layer->weights[which][e]))
                return false;
    return true;
}

static struct kt_amx_call begin_call(const struct kt_experts *e,
                                     const struct kt_expert_layer *layer, bool backward)
{
    const struct kt_amx_experts *amx = (const struct kt_amx_experts *)e;
    bool int8 = multiplies_int8(amx, layer);
    int64_t hidden = layer->hidden_size, inter = layer->intermediate_size;
    int64_t step = int8 ? KT_AMX_INT8_STEP : KT_AMX_STEP;
    return (struct kt_amx_call){
        .layer = layer,
        .pool = e->ctx->pool,
        .amx = amx,
        .backward = backward,
        .hidden = hidden,
        .inter = inter,
        .hidden_steps = kt_amx_blocks(hidden, KT_AMX_STEP),
        .inter_steps = kt_amx_blocks(inter, KT_AMX_STEP),
        .int8 = int8,
        .x = {.features = hidden, .bytes = kt_amx_blocks(hidden, step) * 1024},
        .h = {.features = inter, .bytes = kt_amx_blocks(inter, step) * 1024},
        .thread_bytes = thread_bytes(amx),
    };
}

static void place(struct kt_amx_call *c, int64_t rows, int64_t tiles)
{
    c->threads = c->given->scratch;
    char *memory = c->threads + (uint64_t)kt_pool_num_threads(c->pool) * c->thread_bytes;
    memory += place_tiles(c, tiles, memory);
    c->blocks = (struct kt_amx_block *)(void *)memory;
    c->tiles = (int64_t *)(c->blocks + blocks_bound(c, rows));
}

/* -- cutting ----------------------------------------------------------------------------------- */

/* Each expert's tiles in blocks of about the same size; returns their number. `tile` counts from 0.
 */
static int64_t cut_blocks(struct kt_amx_call *c)
{
    const int64_t *first = c->routing->first;
    int64_t num = 0, tile = 0;
    for (int32_t e = 0; e < c->layer->num_experts; e++) {
        int64_t rows = first[e + 1] - first[e], tiles = kt_amx_blocks(rows, KT_AMX_TOKENS);
        int64_t pieces = kt_amx_blocks(tiles, block_tiles(c));
        for (int64_t i = 0; i < pieces; i++) {
            int64_t from = tiles * i / pieces, to = tiles * (i + 1) / pieces;
            int64_t last = kt_min_i64(rows, to * KT_AMX_TOKENS);
            c->blocks[num++] =
                (struct kt_amx_block){e, tile + from, to - from, last - from * KT_AMX_TOKENS,
                                      first[e] + from * KT_AMX_TOKENS};
        }
        c->tiles[e] = tile;
        tile += tiles;
    }
    return num;
}

/* -- calls ------------------------------------------------------------------------------------- */

static bool has_tiles(const struct kt_expert_layer *layer)
{
    for (int which = 0; which < KT_EXPERT_LINEARS; which++) {
        for (int32_t e = 0; e < layer->num_experts; e++) {
            kt_dtype dtype = layer->weights[which][e].dtype;
            if (dtype == KT_DTYPE_F32 || dtype == KT_DTYPE_F16)
                return false;
            if (layer->lora[which] && layer->lora[which][e].a)
                return false;
        }
    }
    return true;
}

/* One token of a conversation leaves 15 of 16 columns of a tile empty: products of vectors read
 * weights as fast, without the way through tiles. */
static bool amx_supports(const struct kt_experts *e, const struct kt_expert_layer *layer,
                         kt_compute compute, int64_t tokens, bool training)
{
    const struct kt_amx_experts *amx = (const struct kt_amx_experts *)e;
    return compute == KT_COMPUTE_BF16 && has_tiles(layer) &&
           (tokens > 1 || training || multiplies_int8(amx, layer));
}

static void run(struct kt_amx_experts *amx, struct kt_amx_call *c)
{
    int64_t rows = c->routing->first[c->layer->num_experts];
    if (!rows)
        return;
    int64_t tiles = group_tiles(c, rows);
    place(c, rows, tiles);
    kt_bind_thread_scratch(c->pool, &amx->bound, c->threads, c->thread_bytes);
    int64_t num = cut_blocks(c);
    for (int64_t i = 0; i < num; i += c->num_blocks) {
        c->group = &c->blocks[i];
        c->tile_begin = c->tile_end = c->group->tile;
        for (c->num_blocks = 0; i + c->num_blocks < num; c->num_blocks++) {
            struct kt_amx_block *block = &c->group[c->num_blocks];
            if (c->tile_end + block->tiles - c->tile_begin > tiles)
                break;
            c->tile_end += block->tiles;
            block->tile -= c->tile_begin;
        }
        if (c->backward)
            kt_amx_group_backward(c);
        else
            kt_amx_group_forward(c);
    }
}

static void amx_forward(struct kt_experts *e, const struct kt_expert_call *call, struct kt_view y)
{
    struct kt_amx_call c = begin_call(e, call->layer, false);
    c.given = call;
    c.routing = call->routing;
    c.sum = y;
    run((struct kt_amx_experts *)e, &c);
}

static void amx_backward(struct kt_experts *e, const struct kt_expert_call *call, struct kt_view dy,
                         struct kt_view dx, float *dweights)
{
    struct kt_amx_call c = begin_call(e, call->layer, true);
    c.given = call;
    c.routing = call->routing;
    c.dy = dy;
    c.sum = dx;
    c.dweights = dweights;
    run((struct kt_amx_experts *)e, &c);
}

static uint64_t amx_scratch_bytes(const struct kt_experts *e, const struct kt_expert_layer *layer,
                                  kt_compute compute, int64_t tokens, int32_t topk, bool backward)
{
    struct kt_amx_call c = begin_call(e, layer, backward);
    int64_t rows = tokens * topk;
    (void)compute;
    return (uint64_t)kt_pool_num_threads(c.pool) * c.thread_bytes +
           place_tiles(&c, group_tiles(&c, rows), NULL) + index_bytes(&c, rows);
}

/* Rough, until measured where it runs: bfloat16 products of tiles. */
static double amx_seconds(const struct kt_experts *e, const struct kt_expert_layer *layer,
                          int64_t rows, bool backward)
{
    static const struct kt_experts_rate forward_rate = {10e9, 1e12}, backward_rate = {9e9, 0.7e12};
    return kt_experts_seconds(e, layer, rows, backward ? backward_rate : forward_rate);
}

static void amx_close(struct kt_experts *e)
{
    free(e);
}

/* Tables of one backend under the names that say how it multiplies. */
#define OPS(backend)                                                                               \
    {                                                                                              \
        .abi = KT_BACKEND_ABI, .name = backend, .supports = amx_supports,                          \
        .scratch_bytes = amx_scratch_bytes, .forward = amx_forward, .backward = amx_backward,      \
        .seconds = amx_seconds, .close = amx_close                                                 \
    }

static const struct kt_experts_ops amx_ops = OPS("amx");
static const struct kt_experts_ops emulated_ops = OPS("amx-emulated");
static const struct kt_experts_ops int8_ops = OPS("amx-int8");
static const struct kt_experts_ops int8_emulated_ops = OPS("amx-int8-emulated");

/* int8: NULL = not in INT8 */
static kt_status open_with(kt_context *ctx, const struct kt_experts_ops *ops,
                           const struct kt_amx_kernels *kernels,
                           const struct kt_amx_int8_kernels *int8, struct kt_experts **out)
{
    struct kt_amx_experts *amx = calloc(1, sizeof *amx);
    if (!amx)
        return kt_fail_memory(ctx, sizeof *amx, "the experts backend");
    amx->base.ops = ops;
    amx->base.ctx = ctx;
    amx->kernels = *kernels;
    if (int8)
        amx->int8 = *int8;
    amx->group_bytes = GROUP_BYTES;
    amx->forward_tiles = FORWARD_TILES;
    amx->backward_tiles = BACKWARD_TILES;
    amx->forward_chunk = amx->backward_chunk = CHUNK;
    amx->int8_chunk = INT8_CHUNK;
    kt_kernels_init(&amx->rows, ctx->cpu.isa);
    *out = &amx->base;
    return KT_OK;
}

kt_status kt_amx_experts_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_amx_kernels kernels = {0};
#if defined(KT_HAVE_AMX)
    if (ctx->cpu.isa & KT_ISA_AMX_BF16)
        kt_amx_kernels_init_amx(&kernels);
#endif
    if (!kernels.forward)
        return kt_fail(
            ctx, KT_ERROR_NOT_FOUND,
            "experts backend \"amx\" is not available here: it needs a processor with "
            "AMX-BF16 and AVX-512-BF16, and Linux's permission to use them; use \"auto\"");
    return open_with(ctx, &amx_ops, &kernels, NULL, out);
}

kt_status kt_amx_int8_experts_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_amx_kernels kernels = {0};
    struct kt_amx_int8_kernels int8 = {0};
#if defined(KT_HAVE_AMX)
    if ((ctx->cpu.isa & KT_ISA_AMX_BF16) && (ctx->cpu.isa & KT_ISA_AMX_INT8)) {
        kt_amx_kernels_init_amx(&kernels);
        kt_amx_int8_kernels_init_amx(&int8);
    }
#endif
    if (!int8.forward)
        return kt_fail(ctx, KT_ERROR_NOT_FOUND,
                       "experts backend \"amx-int8\" is not available here: it needs a processor "
                       "with AMX-INT8, AMX-BF16 and AVX-512-BF16, and Linux's permission to use "
                       "them; use \"auto\"");
    return open_with(ctx, &int8_ops, &kernels, &int8, out);
}

static void init_emulated(const kt_context *ctx, struct kt_amx_kernels *kernels,
                          struct kt_amx_int8_kernels *int8)
{
    kt_amx_kernels_init_c(kernels);
    kt_amx_int8_kernels_init_c(int8);
#if defined(KT_HAVE_AMX)
    if (ctx->cpu.isa & KT_ISA_AVX512_BF16) {
        kt_amx_kernels_init_avx512bf16(kernels);
        kt_amx_int8_kernels_init_avx512bf16(int8);
    }
#else
    (void)ctx;
#endif
}

kt_status kt_amx_emulated_experts_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_amx_kernels kernels;
    struct kt_amx_int8_kernels int8;
    init_emulated(ctx, &kernels, &int8);
    return open_with(ctx, &emulated_ops, &kernels, NULL, out);
}

kt_status kt_amx_int8_emulated_experts_open(kt_context *ctx, struct kt_experts **out)
{
    struct kt_amx_kernels kernels;
    struct kt_amx_int8_kernels int8;
    init_emulated(ctx, &kernels, &int8);
    return open_with(ctx, &int8_emulated_ops, &kernels, &int8, out);
}
