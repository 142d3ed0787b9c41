/* SPDX-License-Identifier: Apache-2.0 */
/* What forward and backward of a group have in common: tasks, tokens in and out. */
#include "backends/amx/experts_group.h"

enum { TASKS_A_THREAD = 4, PIECES_A_THREAD = 32, MAX_GRAIN = 4 };

/* The widest power of two of features that leaves each thread a few tasks. */
void kt_amx_choose_width(struct kt_amx_call *c, int64_t features, int64_t most)
{
    int64_t wanted = TASKS_A_THREAD * (int64_t)kt_pool_num_threads(c->pool);
    c->width = most;
    while (c->width > KT_AMX_STEP && c->num_blocks * kt_amx_blocks(features, c->width) < wanted)
        c->width /= 2;
    c->ld = c->width + KT_AMX_PAD;
}

/* Task i over parts of `features`: node by node, for each expert of the group, all parts that the
 * node owns, all blocks. */
struct kt_amx_task kt_amx_task_at(const struct kt_amx_call *c, int64_t i, int64_t features)
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
    struct kt_amx_task t = {.block = begin + local % blocks,
                            .from = (first + local / blocks) * c->width};
    t.features = kt_min_i64(c->width, features - t.from);
    return t;
}

/* Threads take a few tasks at a time, so that each knows what it reads next; first those of parts
 * that their node owns, so that a node reads about the same rows of a weight in every step. */
void kt_amx_run_tasks(struct kt_amx_call *c, int64_t features, kt_range_fn fn)
{
    int64_t parts = kt_amx_blocks(features, c->width), tasks = c->num_blocks * parts;
    int64_t pieces = PIECES_A_THREAD * (int64_t)kt_pool_num_threads(c->pool);
    kt_parallel_for_nodes(c->pool, parts, c->num_blocks,
                          kt_max_i64(1, kt_min_i64(tasks / pieces, MAX_GRAIN)), fn, c);
}

const struct kt_weight *kt_amx_task_weight(const struct kt_amx_call *c, int which,
                                           const struct kt_amx_task *t)
{
    return &c->layer->weights[which][t->block->expert];
}

void kt_amx_add_rows(struct kt_amx_blocks *b, const struct kt_weight *w, int64_t from,
                     int64_t count)
{
    for (int64_t r = 0; r < count; r += KT_AMX_ROWS, b->num++) {
        b->weight[b->num] = w;
        b->first[b->num] = from + r;
        b->rows[b->num] = (int32_t)kt_min_i64(KT_AMX_ROWS, count - r);
    }
}

struct kt_amx_blocks kt_amx_gate_up_rows(const struct kt_amx_call *c, const struct kt_amx_task *t)
{
    struct kt_amx_blocks b = {.decode = c->amx->rows.decode[KT_DECODE_BF16]};
    kt_amx_add_rows(&b, kt_amx_task_weight(c, KT_EXPERT_GATE, t), t->from, t->features);
    kt_amx_add_rows(&b, kt_amx_task_weight(c, KT_EXPERT_UP, t), t->from, t->features);
    return b;
}

/* -- products with columns -----------------------------------------------------------------------
 */

void kt_amx_enter(const struct kt_amx_call *c)
{
    c->amx->kernels.enter();
    if (c->int8)
        c->amx->int8.enter();
}

void kt_amx_leave(const struct kt_amx_call *c)
{
    if (c->int8)
        c->amx->int8.leave();
    c->amx->kernels.leave();
}

void kt_amx_multiply(const struct kt_amx_call *c, const struct kt_amx_thread *s,
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
                        struct kt_view from, const float *tokens[KT_AMX_TOKENS])
{
    for (int64_t s = 0; s < KT_AMX_TOKENS; s++) {
        int64_t row = tile * KT_AMX_TOKENS + s;
        tokens[s] = NULL;
        if (row < block->rows)
            tokens[s] = kt_view_at(from, kt_amx_slot(c, block, row) / c->routing->topk, 0).data;
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

void kt_amx_gather(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    const float *tokens[KT_AMX_TOKENS];
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        const struct kt_amx_block *block = &c->group[i];
        for (int64_t tile = 0; tile < block->tiles; tile++) {
            int64_t at = block->tile + tile;
            if (!c->backward || !c->given->kept) {
                tile_tokens(c, block, tile, c->given->x, tokens);
                pack_x(c, tokens, at);
            }
            if (c->backward) {
                tile_tokens(c, block, tile, c->dy, tokens);
                c->amx->kernels.pack_rows(tokens, c->hidden,
                                          c->dy_rows + at * kt_amx_tile_bytes(c->hidden_steps));
            }
        }
    }
}

/* Place of a row in the tiles of the group; outside of them if it is another group's. */
static int64_t place_of(const struct kt_amx_call *c, int64_t row)
{
    int32_t expert = c->routing->ids[c->routing->slots[row]];
    return (c->tiles[expert] - c->tile_begin) * KT_AMX_TOKENS + row - c->routing->first[expert];
}

/* A token's rows come in ascending order, here and from group to group. */
void kt_amx_scatter(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    const struct kt_routing *r = c->routing;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        const int32_t *rows = r->rows + token * r->topk;
        for (int32_t j = 0; j < r->topk && rows[j] >= 0; j++) {
            int64_t place = place_of(c, rows[j]);
            if (place < 0 || place >= (c->tile_end - c->tile_begin) * KT_AMX_TOKENS)
                continue;
            c->amx->rows.row.scale_add(
                c->hidden, c->backward ? 1.0f : r->weights[r->slots[rows[j]]],
                c->out + place * kt_amx_out_ld(c), 1, kt_view_at(c->sum, token, 0).data);
        }
    }
}

float *kt_amx_kept_row(const struct kt_amx_call *c, const struct kt_amx_task *t, int64_t row,
                       int which)
{
    int64_t slot = kt_amx_slot(c, t->block, row);
    return c->given->kept + (2 * slot + which) * c->inter + t->from;
}
