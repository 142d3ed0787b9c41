/* SPDX-License-Identifier: Apache-2.0 */
/* Forward and backward of one group of blocks, phase by phase. */
#include <string.h>

#include "backends/amx/experts.h"
#include "core/memory.h"

enum { TOKENS_A_TASK = 4, TASKS_A_THREAD = 4, PIECES_A_THREAD = 32, MAX_GRAIN = 4 };

static int64_t tile_bytes(int64_t steps)
{
    return steps * 1024;
}

/* The widest power of two of features that leaves each thread a few tasks. */
static void choose_width(struct kt_amx_call *c, int64_t features, int64_t most)
{
    int64_t wanted = TASKS_A_THREAD * (int64_t)kt_pool_num_threads(c->pool);
    c->width = most;
    while (c->width > KT_AMX_STEP && c->num_blocks * kt_amx_blocks(features, c->width) < wanted)
        c->width /= 2;
    c->ld = c->width + KT_AMX_PAD;
}

/* Features of a task in backward, at most: few tiles leave room for rows of a weight as long as a
 * page, in the scratch and, with the results of 16 tiles, in level 2. */
static int64_t backward_features(const struct kt_amx_call *c)
{
    enum { LEVEL2_TILES = 16 };
    int64_t room = kt_min_i64(c->amx->backward_tiles, LEVEL2_TILES) * KT_AMX_LD;
    int64_t tiles = 1, width = KT_AMX_FEATURES;
    for (int64_t i = 0; i < c->num_blocks; i++)
        tiles = kt_max_i64(tiles, c->group[i].tiles);
    while (width < KT_AMX_WIDE_FEATURES && tiles * (2 * width + KT_AMX_PAD) <= room)
        width *= 2;
    return width;
}

/* A task's place: blocks of the same expert follow each other. */
struct task {
    const struct kt_amx_block *block;
    int64_t from, features;
};

/* Task i over parts of `features`: node by node, for each expert of the group, all parts that the
 * node owns, all blocks. */
static struct task task_at(const struct kt_amx_call *c, int64_t i, int64_t features)
{
    int64_t parts = kt_amx_blocks(features, c->width);
    int32_t node = kt_pool_owner(c->pool, parts, c->num_blocks, i);
    int64_t first = kt_pool_first(c->pool, node, parts);
    int64_t last = kt_pool_first(c->pool, node + 1, parts);
    i -= c->num_blocks * first;
    const struct kt_amx_block *block = &c->group[i / (last - first)];
    const struct kt_amx_block *begin = block, *end = block + 1;
    while (begin > c->group && begin[-1].expert == block->expert)
        begin--;
    while (end < c->group + c->num_blocks && end->expert == block->expert)
        end++;
    int64_t local = i - (begin - c->group) * (last - first), blocks = end - begin;
    struct task t = {.block = begin + local % blocks, .from = (first + local / blocks) * c->width};
    t.features = kt_min_i64(c->width, features - t.from);
    return t;
}

/* Threads take a few tasks at a time, so that each knows what it reads next; first those of parts
 * that their node owns, so that a node reads about the same rows of a weight in every step. */
static void run_tasks(struct kt_amx_call *c, int64_t features, kt_range_fn fn)
{
    int64_t parts = kt_amx_blocks(features, c->width), tasks = c->num_blocks * parts;
    int64_t pieces = PIECES_A_THREAD * (int64_t)kt_pool_num_threads(c->pool);
    kt_parallel_for_nodes(c->pool, parts, c->num_blocks,
                          kt_max_i64(1, kt_min_i64(tasks / pieces, MAX_GRAIN)), fn, c);
}

static const struct kt_weight *weight(const struct kt_amx_call *c, int which, const struct task *t)
{
    return &c->layer->weights[which][t->block->expert];
}

static void add_rows(struct kt_amx_blocks *b, const struct kt_weight *w, int64_t from,
                     int64_t count)
{
    for (int64_t r = 0; r < count; r += KT_AMX_ROWS, b->num++) {
        b->weight[b->num] = w;
        b->first[b->num] = from + r;
        b->rows[b->num] = (int32_t)kt_min_i64(KT_AMX_ROWS, count - r);
    }
}

static struct kt_amx_blocks gate_up_rows(const struct kt_amx_call *c, const struct task *t)
{
    struct kt_amx_blocks b = {.decode = c->amx->rows.decode[KT_DECODE_BF16]};
    add_rows(&b, weight(c, KT_EXPERT_GATE, t), t->from, t->features);
    add_rows(&b, weight(c, KT_EXPERT_UP, t), t->from, t->features);
    return b;
}

/* The first of a task's features that gate_up_rows has blocks for, and what is left. */
static struct task split_task(struct task *t)
{
    struct task first = *t;
    first.features = kt_min_i64(t->features, KT_AMX_FEATURES / 2);
    t->from += first.features;
    t->features -= first.features;
    return first;
}

static struct kt_amx_blocks down_rows(const struct kt_amx_call *c, const struct task *t)
{
    struct kt_amx_blocks b = {.decode = c->amx->rows.decode[KT_DECODE_BF16]};
    add_rows(&b, weight(c, KT_EXPERT_DOWN, t), t->from, t->features);
    return b;
}

static struct kt_amx_strip strip(const struct kt_amx_call *c, int which, const struct task *t)
{
    return (struct kt_amx_strip){.decode = c->amx->rows.decode[KT_DECODE_BF16],
                                 .decode_pairs = c->amx->rows.decode_pairs,
                                 .weight = weight(c, which, t),
                                 .col = t->from,
                                 .cols = t->features};
}

/* -- products with columns -----------------------------------------------------------------------
 */

static void enter(const struct kt_amx_call *c)
{
    c->amx->kernels.enter();
    if (c->int8)
        c->amx->int8.enter();
}

static void leave(const struct kt_amx_call *c)
{
    if (c->int8)
        c->amx->int8.leave();
    c->amx->kernels.leave();
}

/* Into the thread's products, W times the block's columns; `next` may be NULL. */
static void multiply(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                     const struct kt_amx_block *block, const struct kt_amx_columns *columns,
                     const struct kt_amx_blocks *w, const struct kt_amx_blocks *next)
{
    const char *data = columns->data + block->tile * columns->bytes;
    if (c->int8)
        c->amx->int8.forward(w, next, columns->features, data,
                             columns->scales + block->tile * KT_AMX_TOKENS, block->tiles,
                             c->amx->int8_chunk, s->products, s->stage);
    else
        c->amx->kernels.forward(w, next, columns->features, data, block->tiles,
                                c->amx->forward_chunk, s->products, s->stage);
}

/* -- tokens in, tokens out ----------------------------------------------------------------------
 */

/* Rows of the tokens of one tile; NULL where it is empty. */
static void tile_tokens(const struct kt_amx_call *c, const struct kt_amx_block *block, int64_t tile,
                        const float *from, const float *tokens[KT_AMX_TOKENS])
{
    for (int64_t s = 0; s < KT_AMX_TOKENS; s++) {
        int64_t row = tile * KT_AMX_TOKENS + s;
        tokens[s] = row < block->rows
                        ? from + c->order[block->first + row] / c->batch->topk * c->hidden
                        : NULL;
    }
}

static void pack_x(const struct kt_amx_call *c, const float *const tokens[KT_AMX_TOKENS],
                   int64_t tile)
{
    char *x = c->x.data + tile * c->x.bytes;
    if (c->int8)
        c->amx->int8.pack_columns(tokens, c->hidden, x, c->x.scales + tile * KT_AMX_TOKENS);
    else
        c->amx->kernels.pack_columns(tokens, c->hidden, x);
}

static void gather_blocks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    const float *tokens[KT_AMX_TOKENS];
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        const struct kt_amx_block *block = &c->group[i];
        for (int64_t tile = 0; tile < block->tiles; tile++) {
            int64_t at = block->tile + tile;
            if (!c->dy || !c->batch->kept) {
                tile_tokens(c, block, tile, c->batch->x, tokens);
                pack_x(c, tokens, at);
            }
            if (c->dy) {
                tile_tokens(c, block, tile, c->dy, tokens);
                c->amx->kernels.pack_rows(tokens, c->hidden,
                                          c->dy_rows + at * tile_bytes(c->hidden_steps));
            }
        }
    }
}

static void scatter_tokens(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    int32_t topk = c->batch->topk;
    (void)thread;
    for (int64_t slot = begin * topk; slot < end * topk; slot++) {
        int64_t row = c->position[slot] - c->tile_begin * KT_AMX_TOKENS;
        if (row < 0 || row >= (c->tile_end - c->tile_begin) * KT_AMX_TOKENS)
            continue;
        c->amx->rows.row.scale_add(c->hidden, c->dy ? 1.0f : c->batch->topk_weights[slot],
                                   c->out + row * kt_amx_out_ld(c), 1,
                                   c->sum + slot / topk * c->hidden);
    }
}

/* -- gate and up products that the caller keeps -------------------------------------------------
 */

static float *kept_row(const struct kt_amx_call *c, const struct task *t, int64_t row, int which)
{
    int64_t slot = c->order[t->block->first + row];
    return c->batch->kept + (2 * slot + which) * c->inter + t->from;
}

static void keep_products(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                          const struct task *t, int which, const float *products)
{
    for (int64_t row = 0; row < t->block->rows; row++)
        s->rows[row] = kept_row(c, t, row, which);
    c->amx->kernels.transpose(products, t->block->tiles, t->features, t->block->rows, 0, s->rows);
}

static void load_products(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                          const struct task *t)
{
    size_t bytes = (size_t)t->features * sizeof(float);
    for (int64_t row = 0; row < t->block->rows; row++) {
        memcpy(s->gate + row * c->ld, kept_row(c, t, row, KT_EXPERT_GATE), bytes);
        memcpy(s->up + row * c->ld, kept_row(c, t, row, KT_EXPERT_UP), bytes);
    }
}

/* -- forward ----------------------------------------------------------------------------------- */

/* h = act(gate) * up, from a task's products into columns. */
static void activate(const struct kt_amx_call *c, const struct task *t, float *gate,
                     const float *up)
{
    int64_t tiles = t->block->tiles, blocks = kt_amx_blocks(t->features, KT_AMX_ROWS);
    int64_t n = 2 * tiles * 256;
    char *h = c->h.data + t->block->tile * c->h.bytes + tile_bytes(t->from / KT_AMX_STEP);
    for (int64_t b = 0; b < blocks; b++, gate += n, up += n, h += tile_bytes(1)) {
        c->amx->rows.row.silu_mul(n, gate, up, gate);
        c->amx->kernels.repack_columns(gate, tiles, h, c->h.bytes);
    }
}

/* The same into floats, for quantise_tiles. */
static void activate_floats(const struct kt_amx_call *c, const struct task *t, const float *gate,
                            const float *up)
{
    int64_t tiles = t->block->tiles, halves = 2 * kt_amx_blocks(t->features, KT_AMX_ROWS);
    for (int64_t i = 0; i < halves * tiles; i++)
        c->amx->rows.row.silu_mul(256, gate + i * 256, up + i * 256,
                                  c->out + (t->block->tile + i % tiles) * kt_amx_h_floats(c) +
                                      (t->from + i / tiles * 16) * KT_AMX_TOKENS);
}

static void quantise_tiles(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    (void)thread;
    for (int64_t tile = begin; tile < end; tile++)
        c->amx->int8.repack_columns(c->out + tile * kt_amx_h_floats(c), c->inter,
                                    c->h.data + tile * c->h.bytes,
                                    c->h.scales + tile * KT_AMX_TOKENS);
}

static void gate_up_tasks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    struct kt_amx_thread s = kt_amx_thread_scratch(c, thread);
    struct task t = task_at(c, begin, c->inter), next = t;
    enter(c);
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_blocks w = gate_up_rows(c, &t), ahead;
        if (i + 1 < end) {
            next = task_at(c, i + 1, c->inter);
            ahead = gate_up_rows(c, &next);
        }
        const float *up = s.products + w.num / 2 * 2 * t.block->tiles * 256;
        multiply(c, &s, t.block, &c->x, &w, i + 1 < end ? &ahead : NULL);
        if (c->batch->kept) {
            keep_products(c, &s, &t, KT_EXPERT_GATE, s.products);
            keep_products(c, &s, &t, KT_EXPERT_UP, up);
        }
        if (c->int8)
            activate_floats(c, &t, s.products, up);
        else
            activate(c, &t, s.products, up);
    }
    leave(c);
}

/* Where the tokens of a task have its features in `out`. */
static void out_rows(const struct kt_amx_call *c, const struct task *t, float **rows)
{
    int64_t ld = kt_amx_out_ld(c);
    for (int64_t row = 0; row < t->block->rows; row++)
        rows[row] = c->out + (t->block->tile * KT_AMX_TOKENS + row) * ld + t->from;
}

static void down_tasks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    struct kt_amx_thread s = kt_amx_thread_scratch(c, thread);
    struct task t = task_at(c, begin, c->hidden), next = t;
    enter(c);
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_blocks w = down_rows(c, &t), ahead;
        if (i + 1 < end) {
            next = task_at(c, i + 1, c->hidden);
            ahead = down_rows(c, &next);
        }
        multiply(c, &s, t.block, &c->h, &w, i + 1 < end ? &ahead : NULL);
        out_rows(c, &t, s.rows);
        c->amx->kernels.transpose(s.products, t.block->tiles, t.features, t.block->rows, 0, s.rows);
    }
    leave(c);
}

void kt_amx_group_forward(struct kt_amx_call *c)
{
    kt_parallel_for(c->pool, c->num_blocks, 1, gather_blocks, c);
    choose_width(c, c->inter, KT_AMX_FEATURES / 2);
    run_tasks(c, c->inter, gate_up_tasks);
    if (c->int8)
        kt_parallel_for(c->pool, c->tile_end - c->tile_begin, 1, quantise_tiles, c);
    choose_width(c, c->hidden, KT_AMX_FEATURES);
    run_tasks(c, c->hidden, down_tasks);
    kt_parallel_for(c->pool, c->batch->tokens, TOKENS_A_TASK, scatter_tokens, c);
}

/* -- backward ---------------------------------------------------------------------------------- */

/* Of one row: the parts of d(topk_weight), one for each step, so that their sum does not depend on
 * how tasks are cut; and dgate and dup in place of gate and up. */
static void activate_row(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                         const struct task *t, int64_t row)
{
    const struct kt_row_kernels *k = &c->amx->rows.row;
    float *gate = s->gate + row * c->ld, *up = s->up + row * c->ld;
    float *dh = s->dh + row * c->ld;
    float topk_weight = c->batch->topk_weights[c->order[t->block->first + row]];
    int64_t place = t->block->tile * KT_AMX_TOKENS + row;
    k->silu_mul(t->features, gate, up, s->h);
    float *partial = c->partial + place * c->inter_steps + t->from / KT_AMX_STEP;
    for (int64_t f = 0; f < t->features; f += KT_AMX_STEP)
        *partial++ = k->dot(kt_min_i64(KT_AMX_STEP, t->features - f), dh + f, s->h + f);
    k->silu_mul_backward(t->features, topk_weight, gate, up, dh, gate, up);
}

static void pack_gradient(const struct kt_amx_call *c, const struct task *t, const float *rows,
                          char *to)
{
    for (int64_t tile = 0; tile < t->block->tiles; tile++) {
        const float *tokens[KT_AMX_TOKENS];
        for (int64_t s = 0; s < KT_AMX_TOKENS; s++) {
            int64_t row = tile * KT_AMX_TOKENS + s;
            tokens[s] = row < t->block->rows ? rows + row * c->ld : NULL;
        }
        c->amx->kernels.pack_rows(tokens, t->features,
                                  to + (t->block->tile + tile) * tile_bytes(c->inter_steps) +
                                      tile_bytes(t->from / KT_AMX_STEP));
    }
}

static void recompute_products(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                               struct task t)
{
    float *to[] = {s->gate, s->up};
    for (int64_t begin = t.from; t.features > 0;) {
        struct task part = split_task(&t);
        struct kt_amx_blocks w = gate_up_rows(c, &part);
        int64_t tiles = part.block->tiles, rows = part.block->rows;
        multiply(c, s, part.block, &c->x, &w, NULL);
        for (int which = 0; which < 2; which++) {
            for (int64_t row = 0; row < rows; row++)
                s->rows[row] = to[which] + row * c->ld + part.from - begin;
            c->amx->kernels.transpose(s->products + which * (w.num / 2) * 2 * tiles * 256, tiles,
                                      part.features, rows, 1, s->rows);
        }
    }
}

static void activation_tasks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    const struct kt_amx_kernels *k = &c->amx->kernels;
    struct kt_amx_thread s = kt_amx_thread_scratch(c, thread);
    struct task t = task_at(c, begin, c->inter), next = t;
    enter(c);
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_strip down = strip(c, KT_EXPERT_DOWN, &t), ahead;
        if (i + 1 < end) {
            next = task_at(c, i + 1, c->inter);
            ahead = strip(c, KT_EXPERT_DOWN, &next);
        }
        int64_t tiles = t.block->tiles, at = t.block->tile * tile_bytes(c->hidden_steps);
        if (c->batch->kept)
            load_products(c, &s, &t);
        else
            recompute_products(c, &s, t);
        k->backward(&down, i + 1 < end ? &ahead : NULL, c->dy_rows + at, tiles,
                    c->amx->backward_chunk, 0, s.dh, c->ld, s.stage);
        k->order_columns(s.dh, c->ld, t.block->rows, t.features, s.dh, c->ld);
        for (int64_t row = 0; row < t.block->rows; row++)
            activate_row(c, &s, &t, row);
        pack_gradient(c, &t, s.gate, c->dgate);
        pack_gradient(c, &t, s.up, c->dup);
    }
    leave(c);
}

static void sum_partials(struct kt_amx_call *c)
{
    for (int64_t i = 0; i < c->num_blocks; i++) {
        const struct kt_amx_block *block = &c->group[i];
        for (int64_t row = 0; row < block->rows; row++) {
            const float *partial =
                c->partial + (block->tile * KT_AMX_TOKENS + row) * c->inter_steps;
            float sum = 0;
            for (int64_t p = 0; p < c->inter_steps; p++)
                sum += partial[p];
            c->dtopk_weights[c->order[block->first + row]] = sum;
        }
    }
}

static void dx_tasks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    const struct kt_amx_kernels *k = &c->amx->kernels;
    struct kt_amx_thread s = kt_amx_thread_scratch(c, thread);
    struct task t = task_at(c, begin, c->hidden), next = t;
    k->enter();
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_strip gate = strip(c, KT_EXPERT_GATE, &t), up = strip(c, KT_EXPERT_UP, &t);
        struct kt_amx_strip ahead;
        if (i + 1 < end) {
            next = task_at(c, i + 1, c->hidden);
            ahead = strip(c, KT_EXPERT_GATE, &next);
        }
        int64_t at = t.block->tile * tile_bytes(c->inter_steps);
        k->backward(&gate, &up, c->dgate + at, t.block->tiles, c->amx->backward_chunk, 0,
                    s.products, c->ld, s.stage);
        k->backward(&up, i + 1 < end ? &ahead : NULL, c->dup + at, t.block->tiles,
                    c->amx->backward_chunk, 1, s.products, c->ld, s.stage);
        k->order_columns(s.products, c->ld, t.block->rows, t.features,
                         c->out + t.block->tile * KT_AMX_TOKENS * kt_amx_out_ld(c) + t.from,
                         kt_amx_out_ld(c));
    }
    k->leave();
}

void kt_amx_group_backward(struct kt_amx_call *c)
{
    kt_parallel_for(c->pool, c->num_blocks, 1, gather_blocks, c);
    choose_width(c, c->inter, backward_features(c));
    run_tasks(c, c->inter, activation_tasks);
    sum_partials(c);
    choose_width(c, c->hidden, backward_features(c));
    run_tasks(c, c->hidden, dx_tasks);
    kt_parallel_for(c->pool, c->batch->tokens, TOKENS_A_TASK, scatter_tokens, c);
}
