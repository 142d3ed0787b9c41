/* SPDX-License-Identifier: Apache-2.0 */
/* Forward of one group of blocks, phase by phase. */
#include "backends/amx/experts_group.h"

static struct kt_amx_blocks down_rows(const struct kt_amx_call *c, const struct kt_amx_task *t)
{
    struct kt_amx_blocks b = {.decode = c->amx->rows.decode[KT_DECODE_BF16]};
    kt_amx_add_rows(&b, kt_amx_task_weight(c, KT_EXPERT_DOWN, t), t->from, t->features);
    return b;
}

static void keep_products(const struct kt_amx_call *c, const struct kt_amx_thread *s,
                          const struct kt_amx_task *t, int which, const float *products)
{
    for (int64_t row = 0; row < t->block->rows; row++)
        s->rows[row] = kt_amx_kept_row(c, t, row, which);
    c->amx->kernels.transpose(products, t->block->tiles, t->features, t->block->rows, 0, s->rows);
}

/* h = act(gate) * up, from a task's products into columns. */
static void activate(const struct kt_amx_call *c, const struct kt_amx_task *t, float *gate,
                     const float *up)
{
    int64_t tiles = t->block->tiles, blocks = kt_amx_blocks(t->features, KT_AMX_ROWS);
    int64_t n = 2 * tiles * 256;
    char *h = c->h.data + t->block->tile * c->h.bytes + kt_amx_tile_bytes(t->from / KT_AMX_STEP);
    for (int64_t b = 0; b < blocks; b++, gate += n, up += n, h += kt_amx_tile_bytes(1)) {
        c->amx->rows.row.silu_mul(n, gate, up, gate);
        c->amx->kernels.repack_columns(gate, tiles, h, c->h.bytes);
    }
}

/* The same into floats, for quantise_tiles. */
static void activate_floats(const struct kt_amx_call *c, const struct kt_amx_task *t,
                            const float *gate, const float *up)
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
    struct kt_amx_task t = kt_amx_task_at(c, begin, c->inter), next = t;
    kt_amx_enter(c);
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_blocks w = kt_amx_gate_up_rows(c, &t), ahead;
        if (i + 1 < end) {
            next = kt_amx_task_at(c, i + 1, c->inter);
            ahead = kt_amx_gate_up_rows(c, &next);
        }
        const float *up = s.products + w.num / 2 * 2 * t.block->tiles * 256;
        kt_amx_multiply(c, &s, t.block, &c->x, &w, i + 1 < end ? &ahead : NULL);
        if (c->given->kept) {
            keep_products(c, &s, &t, KT_EXPERT_GATE, s.products);
            keep_products(c, &s, &t, KT_EXPERT_UP, up);
        }
        if (c->int8)
            activate_floats(c, &t, s.products, up);
        else
            activate(c, &t, s.products, up);
    }
    kt_amx_leave(c);
}

/* Where the tokens of a task have its features in `out`. */
static void out_rows(const struct kt_amx_call *c, const struct kt_amx_task *t, float **rows)
{
    int64_t ld = kt_amx_out_ld(c);
    for (int64_t row = 0; row < t->block->rows; row++)
        rows[row] = c->out + (t->block->tile * KT_AMX_TOKENS + row) * ld + t->from;
}

static void down_tasks(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_amx_call *c = arg;
    struct kt_amx_thread s = kt_amx_thread_scratch(c, thread);
    struct kt_amx_task t = kt_amx_task_at(c, begin, c->hidden), next = t;
    kt_amx_enter(c);
    for (int64_t i = begin; i < end; i++, t = next) {
        struct kt_amx_blocks w = down_rows(c, &t), ahead;
        if (i + 1 < end) {
            next = kt_amx_task_at(c, i + 1, c->hidden);
            ahead = down_rows(c, &next);
        }
        kt_amx_multiply(c, &s, t.block, &c->h, &w, i + 1 < end ? &ahead : NULL);
        out_rows(c, &t, s.rows);
        c->amx->kernels.transpose(s.products, t.block->tiles, t.features, t.block->rows, 0, s.rows);
    }
    kt_amx_leave(c);
}

void kt_amx_group_forward(struct kt_amx_call *c)
{
    kt_parallel_for(c->pool, c->num_blocks, 1, kt_amx_gather, c);
    kt_amx_choose_width(c, c->inter, KT_AMX_FEATURES / 2);
    kt_amx_run_tasks(c, c->inter, gate_up_tasks);
    if (c->int8)
        kt_parallel_for(c->pool, c->tile_end - c->tile_begin, 1, quantise_tiles, c);
    kt_amx_choose_width(c, c->hidden, KT_AMX_FEATURES);
    kt_amx_run_tasks(c, c->hidden, down_tasks);
    kt_parallel_for(c->pool, c->routing->tokens, KT_AMX_TOKENS_A_TASK, kt_amx_scatter, c);
}
