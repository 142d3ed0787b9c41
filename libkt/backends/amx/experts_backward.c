/* SPDX-License-Identifier: Apache-2.0 */
/* Backward of one group of blocks, phase by phase. */
#include <string.h>

#include "backends/amx/experts_group.h"

static int64_t most_tiles(const struct kt_amx_call *c)
{
    int64_t tiles = 1;
    for (int64_t i = 0; i < c->num_blocks; i++)
        tiles = kt_max_i64(tiles, c->group[i].tiles);
    return tiles;
}

/* The first of a task's features that kt_amx_gate_up_rows has blocks for; *t is what is left. */
static struct kt_amx_task split_task(struct kt_amx_task *t)
{
    struct kt_amx_task first = *t;
    first.features = kt_min_i64(t->features, KT_AMX_FEATURES / 2);
    t->from += first.features;
    t->features -= first.features;
    return first;
}

static struct kt_amx_strip strip(const struct kt_amx_call *c, int which,
                                 const struct kt_amx_task *t)
{
    return (struct kt_amx_strip){.decode = c->amx->rows.decode[KT_DECODE_BF16],
                                 .decode_pairs = c->amx->rows.decode_pairs,
                                 .weight = kt_amx_task_weight(c, which, t),
                                 .col = t->from,
                                 .cols = t->features};
}

static void load_products(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                          const struct kt_amx_task *t)
{
    size_t bytes = (size_t)t->features * sizeof(float);
    for (int64_t row = 0; row < t->block->rows; row++) {
        memcpy(s->gate + row * c->ld, kt_amx_kept_row(c, t, row, KT_EXPERT_GATE), bytes);
        memcpy(s->up + row * c->ld, kt_amx_kept_row(c, t, row, KT_EXPERT_UP), bytes);
    }
}

/* Of one row: the parts of d(weight), one for each step, so that their sum does not depend on
 * how tasks are cut; and dgate and dup in place of gate and up. */
static void activate_row(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                         const struct kt_amx_task *t, int64_t row)
{
    const struct kt_row_kernels *k = &c->amx->rows.row;
    float *gate = s->gate + row * c->ld, *up = s->up + row * c->ld;
    float *dh = s->dh + row * c->ld;
    float weight = c->routing->weights[kt_amx_slot(c, t->block, row)];
    int64_t place = t->block->tile * KT_AMX_TOKENS + row;
    k->silu_mul(t->features, gate, up, s->h);
    float *partial = c->partial + place * c->inter_steps + t->from / KT_AMX_STEP;
    for (int64_t f = 0; f < t->features; f += KT_AMX_STEP)
        *partial++ = k->dot(kt_min_i64(KT_AMX_STEP, t->features - f), dh + f, s->h + f);
    k->silu_mul_backward(t->features, weight, gate, up, dh, gate, up);
}

static void pack_gradient(const struct kt_amx_call *c, const struct kt_amx_task *t,
                          const float *rows, char *to)
{
    for (int64_t tile = 0; tile < t->block->tiles; tile++) {
        const float *tokens[KT_AMX_TOKENS];
        for (int64_t s = 0; s < KT_AMX_TOKENS; s++) {
            int64_t row = tile * KT_AMX_TOKENS + s;
            tokens[s] = row < t->block->rows ? rows + row * c->ld : NULL;
        }
        c->amx->kernels.pack_rows(tokens, t->features,
                                  to + (t->block->tile + tile) * kt_amx_tile_bytes(c->inter_steps) +
                                      kt_amx_tile_bytes(t->from / KT_AMX_STEP));
    }
}

static void recompute_products(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                               struct kt_amx_task t)
{
    float *to[] = {s->gate, s->up};
    for (int64_t begin = t.from; t.features > 0;) {
        struct kt_amx_task part = split_task(&t);
        struct kt_amx_blocks w = kt_amx_gate_up_rows(c, &part);
        int64_t tiles = part.block->tiles, rows = part.block->rows;
        kt_amx_multiply(c, s, part.block, &c->x, &w, NULL);
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
    struct kt_amx_task t = kt_amx_task_at(c, begin, c->inter), next = t;
    kt_amx_enter(c);
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_strip down = strip(c, KT_EXPERT_DOWN, &t), ahead;
        if (i + 1 < end) {
            next = kt_amx_task_at(c, i + 1, c->inter);
            ahead = strip(c, KT_EXPERT_DOWN, &next);
        }
        int64_t at = t.block->tile * kt_amx_tile_bytes(c->hidden_steps);
        if (c->given->kept)
            load_products(c, &s, &t);
        else
            recompute_products(c, &s, t);
        k->backward(&down, i + 1 < end ? &ahead : NULL, c->dy_rows + at, t.block->rows,
                    c->amx->backward_chunk, 0, s.dh, c->ld, s.stage);
        k->order_columns(s.dh, c->ld, t.block->rows, t.features, s.dh, c->ld);
        for (int64_t row = 0; row < t.block->rows; row++)
            activate_row(c, &s, &t, row);
        pack_gradient(c, &t, s.gate, c->dgate);
        pack_gradient(c, &t, s.up, c->dup);
    }
    kt_amx_leave(c);
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
            c->dweights[kt_amx_slot(c, block, row)] = sum;
        }
    }
}

static void dx_tasks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    const struct kt_amx_kernels *k = &c->amx->kernels;
    struct kt_amx_thread s = kt_amx_thread_scratch(c, thread);
    struct kt_amx_task t = kt_amx_task_at(c, begin, c->hidden), next = t;
    k->enter();
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_strip gate = strip(c, KT_EXPERT_GATE, &t), up = strip(c, KT_EXPERT_UP, &t);
        struct kt_amx_strip ahead;
        if (i + 1 < end) {
            next = kt_amx_task_at(c, i + 1, c->hidden);
            ahead = strip(c, KT_EXPERT_GATE, &next);
        }
        int64_t at = t.block->tile * kt_amx_tile_bytes(c->inter_steps);
        k->backward(&gate, &up, c->dgate + at, t.block->rows, c->amx->backward_chunk, 0, s.products,
                    c->ld, s.stage);
        k->backward(&up, i + 1 < end ? &ahead : NULL, c->dup + at, t.block->rows,
                    c->amx->backward_chunk, 1, s.products, c->ld, s.stage);
        k->order_columns(s.products, c->ld, t.block->rows, t.features,
                         c->out + t.block->tile * KT_AMX_TOKENS * kt_amx_out_ld(c) + t.from,
                         kt_amx_out_ld(c));
    }
    k->leave();
}

void kt_amx_group_backward(struct kt_amx_call *c)
{
    int64_t most = kt_amx_backward_features(c->amx, most_tiles(c));
    kt_parallel_for(c->pool, c->num_blocks, 1, kt_amx_gather, c);
    kt_amx_choose_width(c, c->inter, most);
    kt_amx_run_tasks(c, c->inter, activation_tasks);
    sum_partials(c);
    kt_amx_choose_width(c, c->hidden, most);
    kt_amx_run_tasks(c, c->hidden, dx_tasks);
    kt_parallel_for(c->pool, c->routing->tokens, KT_AMX_TOKENS_A_TASK, kt_amx_scatter, c);
}
