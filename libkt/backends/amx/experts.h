/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/amx/experts.h
 * The experts backend "amx" from inside, and "amx-emulated", which computes the same with emulated
 * tiles on any machine (slowly: it exists for tests).
 *
 * It multiplies in bfloat16; weights in smaller formats are decoded to it, a block at a time, FP8
 * for few tokens without its scales (kernels.h). Forward and backward cut an expert's tokens into
 * the same blocks, so that backward is the gradient of forward's weights. It does not support
 * layers with LoRA on experts or with F32 or F16 weights, calls in float32, and calls with one
 * token that is not trained on (unless in INT8, see below).
 *
 * "amx-int8" (and "amx-int8-emulated") is the same backend, but where all weights of a layer are
 * INT8 it quantises x and h and multiplies in INT8 (kernels_int8.h): in forward, and where backward
 * recomputes gate and up. Backward's own products are made in bfloat16 of the decoded weights: the
 * gradient at the gate and up products of forward, with rounding taken for the identity.
 *
 * The rows of an expert are in tiles of 16, of which the last may be partly empty. Tiles are cut
 * into blocks of one expert, and blocks are worked on in groups, so that scratch is bounded. A
 * phase over a group is a list of tasks (columns or rows of a weight) x (block), the blocks of an
 * expert one after another; each owns its results. Tiles are summed into tokens in a last phase
 * that owns tokens. So bits depend neither on the number of threads nor on groups.
 *
 * Scratch: a group's tiles (group_bytes, or one block), lists of blocks and experts, and for
 * each thread the products of one task. In INT8, h in float32 lies where `out` will be, as its
 * scale is known only when all of it is. */
#ifndef KT_BACKENDS_AMX_EXPERTS_H
#define KT_BACKENDS_AMX_EXPERTS_H

#include "backend/experts.h"
#include "backends/amx/kernels_int8.h"
#include "backends/cpu/cpu.h"
#include "core/memory.h"

struct kt_amx_experts {
    struct kt_experts base;
    struct kt_kernels rows; /**< element-wise kernels */
    struct kt_amx_kernels kernels;
    struct kt_amx_int8_kernels int8; /**< without functions: not in INT8 */
    struct kt_bound_scratch bound;
    uint64_t group_bytes;
    int64_t forward_tiles, backward_tiles; /**< of a block, at most */
    int64_t forward_chunk, backward_chunk; /**< features, and rows, multiplied at a time */
    int64_t int8_chunk;
};

/** NOT_FOUND where the processor or the operating system lacks the instructions. */
kt_status kt_amx_experts_open(kt_context *ctx, struct kt_experts **out);
kt_status kt_amx_emulated_experts_open(kt_context *ctx, struct kt_experts **out);
kt_status kt_amx_int8_experts_open(kt_context *ctx, struct kt_experts **out);
kt_status kt_amx_int8_emulated_experts_open(kt_context *ctx, struct kt_experts **out);

/** Tiles [tile, tile + tiles) of the group, all of one expert; `rows` of their rows exist. */
struct kt_amx_block {
    int32_t expert;
    int64_t tile, tiles, rows;
    int64_t first; /**< row of the routing */
};

/** Columns of the group's tiles. */
struct kt_amx_columns {
    char *data;
    float *scales; /**< [16 * tiles], INT8 only */
    int64_t features;
    int64_t bytes; /**< of a tile */
};

/** One call, and the group that it is at. */
struct kt_amx_call {
    const struct kt_expert_call *given;
    const struct kt_expert_layer *layer;
    const struct kt_routing *routing;
    struct kt_pool *pool;
    const struct kt_amx_experts *amx;
    bool backward;
    struct kt_view dy, sum; /**< sum: y, or dx in backward */
    float *dweights;
    int64_t hidden, inter, hidden_steps, inter_steps;
    bool int8;     /**< columns are INT8 */
    int64_t width; /**< features of a task of the phase */
    int64_t ld;    /**< floats between rows of a task's results in backward */

    int64_t *tiles;               /**< [num_experts] first tile of an expert, over all groups */
    struct kt_amx_block *blocks;  /**< of the call; `tile` counts from the group's first */
    struct kt_amx_block *group;   /**< its first block */
    int64_t num_blocks;           /**< of the group */
    int64_t tile_begin, tile_end; /**< of the group */

    struct kt_amx_columns x; /**< of hidden features */
    struct kt_amx_columns h; /**< of intermediate features */

    char *dy_rows;     /**< rows of hidden features */
    char *dgate, *dup; /**< rows of intermediate features */
    float *out;        /**< [16 * tiles, 16-aligned hidden]; before, INT8: see kt_amx_h_floats */
    float *partial;    /**< [16 * tiles, inter_steps] parts of d(weights) */
    char *threads;
    uint64_t thread_bytes;
};

/** What one thread works in. */
struct kt_amx_thread {
    void *stage;
    float *products;
    float *gate, *up, *dh; /**< [16 tokens x tiles of a block][ld] */
    float *h;              /**< [ld] */
    float **rows;          /**< [16 tokens x tiles of a block] */
};

enum {
    KT_AMX_FEATURES = KT_AMX_MAX_BLOCKS * KT_AMX_ROWS, /**< of a task, at most */
    KT_AMX_WIDE_FEATURES = 2048, /**< of a task of few tiles in backward, at most */
    KT_AMX_PAD = 16,             /**< floats after a row, so that rows share no set of a cache */
    KT_AMX_LD = KT_AMX_FEATURES + KT_AMX_PAD
};

static inline int64_t kt_amx_blocks(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

/** Floats between rows of `out`. */
static inline int64_t kt_amx_out_ld(const struct kt_amx_call *c)
{
    return kt_amx_blocks(c->hidden, 16) * 16;
}

/** Floats of h of a tile: [32-aligned inter][16 tokens]. */
static inline int64_t kt_amx_h_floats(const struct kt_amx_call *c)
{
    return c->inter_steps * KT_AMX_STEP * KT_AMX_TOKENS;
}

/** Features of a task in backward, at most, where blocks have up to `tiles` tiles: few leave room
 * for rows of a weight as long as a page, in the scratch and, with the results of 16 tiles, in
 * level-2 cache. */
static inline int64_t kt_amx_backward_features(const struct kt_amx_experts *amx, int64_t tiles)
{
    enum { LEVEL2_TILES = 16 };
    int64_t room = kt_min_i64(amx->backward_tiles, LEVEL2_TILES) * KT_AMX_LD;
    int64_t width = KT_AMX_FEATURES;
    while (width < KT_AMX_WIDE_FEATURES && tiles * (2 * width + KT_AMX_PAD) <= room)
        width *= 2;
    return width;
}

struct kt_amx_thread kt_amx_thread_scratch(const struct kt_amx_call *c, int32_t thread);

/* The phases of one group (experts_forward.c, experts_backward.c). */
void kt_amx_group_forward(struct kt_amx_call *c);
void kt_amx_group_backward(struct kt_amx_call *c);

#endif
