/* SPDX-License-Identifier: Apache-2.0 */
/* What the operations read and write: where each operand's address stands in the arguments, and how
 * far it reaches. */
#include <stddef.h>

#include "backends/cpu_far/far.h"

static struct kt_far_extent matrix(const struct kt_view *v, int64_t rows, int64_t cols)
{
    return (struct kt_far_extent){rows, v->ld, 1, 0, cols, kt_view_element(v->dtype)};
}

/* The same where a row is `num` heads, `stride` elements apart. */
static struct kt_far_extent heads(const struct kt_view *v, int64_t rows, int64_t num,
                                  int64_t stride, int64_t dim)
{
    return (struct kt_far_extent){rows, v->ld, num, stride, dim, kt_view_element(v->dtype)};
}

static struct kt_far_extent array(int64_t num, int64_t element)
{
    return (struct kt_far_extent){1, 0, 1, 0, num, element};
}

static struct kt_far_extent words(int64_t num)
{
    return array(num, 4);
}

static const struct kt_far_extent unused;

uint64_t kt_far_extent_bytes(const struct kt_far_extent *e)
{
    if (e->rows <= 0 || e->parts <= 0 || e->cols <= 0)
        return 0;
    int64_t elements = (e->rows - 1) * e->ld + (e->parts - 1) * e->stride + e->cols;
    return (uint64_t)(elements * e->element);
}

static struct kt_far_extent weight_data(const struct kt_weight *w)
{
    return array((int64_t)((uint64_t)w->rows * kt_format_row_bytes(w->dtype, w->cols)), 1);
}

static struct kt_far_extent weight_scale(const struct kt_weight *w)
{
    if (!w->scale || !w->rows || !w->cols)
        return unused;
    return words(kt_weight_scale(w, w->rows - 1, w->cols - 1) - w->scale + 1);
}

static int64_t total(const struct kt_offsets *offsets)
{
    return offsets->num ? offsets->host[offsets->num] : 0;
}

#define EXTENT(name, type, extent)                                                                 \
    static struct kt_far_extent name(const void *args)                                             \
    {                                                                                              \
        const struct type *a = args;                                                               \
        return extent;                                                                             \
    }

EXTENT(linear_weight, kt_linear_args, a->tokens ? weight_data(&a->weight) : unused)
EXTENT(linear_scale, kt_linear_args, a->tokens ? weight_scale(&a->weight) : unused)
EXTENT(forward_x, kt_linear_args, matrix(&a->x, a->tokens, a->weight.cols))
EXTENT(forward_y, kt_linear_args, matrix(&a->y, a->tokens, a->weight.rows))
EXTENT(backward_x, kt_linear_args, matrix(&a->x, a->tokens, a->weight.rows))
EXTENT(backward_y, kt_linear_args, matrix(&a->y, a->tokens, a->weight.cols))

static struct kt_far_extent factor(const struct kt_gemm_args *a, const struct kt_view *v,
                                   bool trans, int64_t rows, int64_t cols)
{
    if (!a->m || !a->n)
        return unused;
    return trans ? matrix(v, cols, rows) : matrix(v, rows, cols);
}

EXTENT(gemm_a, kt_gemm_args, factor(a, &a->a, a->trans_a, a->m, a->k))
EXTENT(gemm_b, kt_gemm_args, factor(a, &a->b, a->trans_b, a->k, a->n))
EXTENT(gemm_c, kt_gemm_args, matrix(&a->c, a->m, a->n))

EXTENT(embedding_table, kt_embedding_args, a->tokens ? weight_data(&a->table) : unused)
EXTENT(embedding_scale, kt_embedding_args, a->tokens ? weight_scale(&a->table) : unused)
EXTENT(embedding_ids, kt_embedding_args, words(a->tokens))
EXTENT(embedding_x, kt_embedding_args, matrix(&a->x, a->tokens, a->table.cols))

EXTENT(norm_weight, kt_norm_args, a->tokens ? words(a->dim) : unused)
EXTENT(norm_x, kt_norm_args, matrix(&a->x, a->tokens, a->dim))
EXTENT(norm_dy, kt_norm_args, matrix(&a->dy, a->tokens, a->dim))
EXTENT(norm_y, kt_norm_args, matrix(&a->y, a->tokens, a->dim))

/* at least a row: how many there are, only the operation sees */
EXTENT(rope_table, kt_rope_args, a->tokens ? words(a->rope_dim / 2) : unused)
EXTENT(rope_rows, kt_rope_args, words(a->tokens))
EXTENT(rope_x, kt_rope_args, heads(&a->x, a->tokens, a->num_heads, a->head_stride, a->rope_dim))

EXTENT(queries, kt_attention_args, a->queries.num ? words(a->queries.num + 1) : unused)
EXTENT(keys, kt_attention_args, a->keys.num ? words(a->keys.num + 1) : unused)
EXTENT(attention_q, kt_attention_args,
       heads(&a->q, total(&a->queries), a->num_heads, a->q_head_stride, a->qk_dim))
EXTENT(attention_k, kt_attention_args,
       heads(&a->k, total(&a->keys), a->num_kv_heads, a->k_head_stride, a->qk_dim - a->shared_dim))
EXTENT(attention_k_shared, kt_attention_args, matrix(&a->k_shared, total(&a->keys), a->shared_dim))
EXTENT(attention_v, kt_attention_args,
       heads(&a->v, total(&a->keys), a->num_kv_heads, a->v_head_stride, a->v_dim))
EXTENT(attention_o, kt_attention_args,
       heads(&a->o, total(&a->queries), a->num_heads, a->o_head_stride, a->v_dim))
EXTENT(attention_lse, kt_attention_args, words(a->num_heads *total(&a->queries)))
EXTENT(attention_lse_out, kt_attention_args, a->lse ? attention_lse(a) : unused)

EXTENT(glu_operand, kt_glu_args, array(a->tokens * a->dim, kt_view_element(a->gate.dtype)))

EXTENT(router_logits, kt_router_args, words(a->tokens * a->router.num_experts))
EXTENT(router_choices, kt_router_args, words(a->tokens * a->router.topk))
EXTENT(router_bias, kt_router_args,
       a->tokens && a->router.correction_bias ? words(a->router.num_experts) : unused)

EXTENT(loss_logits, kt_cross_entropy_args, matrix(&a->logits, a->tokens, a->vocab))
EXTENT(loss_tokens, kt_cross_entropy_args, words(a->tokens))
EXTENT(loss_gradient, kt_cross_entropy_args, a->dlogprobs ? words(a->tokens) : unused)

EXTENT(rows_x, kt_rows_args, matrix(&a->x, a->tokens, a->dim))
EXTENT(rows_y, kt_rows_args, matrix(&a->y, a->tokens, a->dim))

EXTENT(dropout_index, kt_dropout_args, a->index ? words(a->tokens) : unused)
EXTENT(dropout_x, kt_dropout_args, matrix(&a->x, a->tokens, a->dim))
EXTENT(dropout_y, kt_dropout_args, matrix(&a->y, a->tokens, a->dim))

EXTENT(gather_index, kt_gather_args, a->index ? words(a->rows) : unused)
EXTENT(gather_token_rows, kt_gather_args, words(a->tokens * a->topk))
EXTENT(gather_slots, kt_gather_args, a->weights ? words(a->rows) : unused)
EXTENT(gather_weights, kt_gather_args, a->rows && a->weights ? words(a->num_slots) : unused)
EXTENT(gather_rows_x, kt_gather_args, matrix(&a->x, a->rows, a->dim))
EXTENT(gather_rows_y, kt_gather_args, matrix(&a->y, a->rows, a->dim))
EXTENT(gather_tokens_x, kt_gather_args, a->rows ? matrix(&a->x, a->tokens, a->dim) : unused)
EXTENT(gather_tokens_y, kt_gather_args, a->rows ? matrix(&a->y, a->tokens, a->dim) : unused)

EXTENT(weigh_slots, kt_weigh_args, words(a->rows))
EXTENT(weigh_weights, kt_weigh_args, a->rows ? words(a->num_slots) : unused)
EXTENT(weigh_h, kt_weigh_args, matrix(&a->h, a->rows, a->dim))
EXTENT(weigh_dh, kt_weigh_args, matrix(&a->dh, a->rows, a->dim))

/* The strides and element types of a gradient are its operand's. */
#define AT(type, member) offsetof(struct type, member)
#define LINEAR(member) AT(kt_linear_args, member)
#define ATTENTION(member) AT(kt_attention_args, member)
#define ATTENTION_OPERANDS                                                                         \
    {"queries", ATTENTION(queries.device), queries, ARRAY},                                        \
        {"keys", ATTENTION(keys.device), keys, ARRAY}, {"q", ATTENTION(q.data), attention_q, IN},  \
        {"k", ATTENTION(k.data), attention_k, IN},                                                 \
        {"k_shared", ATTENTION(k_shared.data), attention_k_shared, IN},                            \
    {                                                                                              \
        "v", ATTENTION(v.data), attention_v, IN                                                    \
    }

#define ARRAY KT_FAR_ARRAY
#define IN KT_FAR_READ
#define OUT KT_FAR_WRITTEN

const struct kt_far_operand kt_far_operands[KT_OPS][KT_FAR_OPERANDS] = {
    [KT_OP_LINEAR_FORWARD] = {{"weight", LINEAR(weight.data), linear_weight, ARRAY},
                              {"weight's scale", LINEAR(weight.scale), linear_scale, ARRAY},
                              {"x", LINEAR(x.data), forward_x, IN},
                              {"y", LINEAR(y.data), forward_y, OUT}},
    [KT_OP_LINEAR_BACKWARD] = {{"weight", LINEAR(weight.data), linear_weight, ARRAY},
                               {"weight's scale", LINEAR(weight.scale), linear_scale, ARRAY},
                               {"x", LINEAR(x.data), backward_x, IN},
                               {"y", LINEAR(y.data), backward_y, OUT}},
    [KT_OP_GEMM] = {{"a", AT(kt_gemm_args, a.data), gemm_a, IN},
                    {"b", AT(kt_gemm_args, b.data), gemm_b, IN},
                    {"c", AT(kt_gemm_args, c.data), gemm_c, OUT}},
    [KT_OP_EMBEDDING] = {{"table", AT(kt_embedding_args, table.data), embedding_table, ARRAY},
                         {"table's scale", AT(kt_embedding_args, table.scale), embedding_scale,
                          ARRAY},
                         {"ids", AT(kt_embedding_args, ids), embedding_ids, ARRAY},
                         {"x", AT(kt_embedding_args, x.data), embedding_x, OUT}},
    [KT_OP_NORM_FORWARD] = {{"weight", AT(kt_norm_args, weight), norm_weight, ARRAY},
                            {"x", AT(kt_norm_args, x.data), norm_x, IN},
                            {"y", AT(kt_norm_args, y.data), norm_y, OUT}},
    [KT_OP_NORM_BACKWARD] = {{"weight", AT(kt_norm_args, weight), norm_weight, ARRAY},
                             {"x", AT(kt_norm_args, x.data), norm_x, IN},
                             {"dy", AT(kt_norm_args, dy.data), norm_dy, IN},
                             {"y", AT(kt_norm_args, y.data), norm_y, OUT}},
    [KT_OP_ROPE] = {{"x", AT(kt_rope_args, x.data), rope_x, OUT},
                    {"cos", AT(kt_rope_args, cos), rope_table, ARRAY},
                    {"sin", AT(kt_rope_args, sin), rope_table, ARRAY},
                    {"rows", AT(kt_rope_args, rows), rope_rows, ARRAY}},
    [KT_OP_ATTENTION_FORWARD] = {ATTENTION_OPERANDS,
                                 {"o", ATTENTION(o.data), attention_o, OUT},
                                 {"lse", ATTENTION(lse), attention_lse_out, ARRAY}},
    [KT_OP_ATTENTION_BACKWARD] = {ATTENTION_OPERANDS,
                                  {"o", ATTENTION(o.data), attention_o, IN},
                                  {"lse", ATTENTION(lse), attention_lse, ARRAY},
                                  {"d_o", ATTENTION(d_o.data), attention_o, IN},
                                  {"dq", ATTENTION(dq.data), attention_q, OUT},
                                  {"dk", ATTENTION(dk.data), attention_k, OUT},
                                  {"dk_shared", ATTENTION(dk_shared.data), attention_k_shared, OUT},
                                  {"dv", ATTENTION(dv.data), attention_v, OUT}},
    [KT_OP_GLU_FORWARD] = {{"gate", AT(kt_glu_args, gate.data), glu_operand, IN},
                           {"up", AT(kt_glu_args, up.data), glu_operand, IN},
                           {"h", AT(kt_glu_args, h.data), glu_operand, OUT}},
    [KT_OP_GLU_BACKWARD] = {{"gate", AT(kt_glu_args, gate.data), glu_operand, IN},
                            {"up", AT(kt_glu_args, up.data), glu_operand, IN},
                            {"dh", AT(kt_glu_args, dh.data), glu_operand, IN},
                            {"dgate", AT(kt_glu_args, dgate.data), glu_operand, OUT},
                            {"dup", AT(kt_glu_args, dup.data), glu_operand, OUT}},
    [KT_OP_ROUTER_FORWARD] = {{"correction_bias", AT(kt_router_args, router.correction_bias),
                               router_bias, ARRAY},
                              {"logits", AT(kt_router_args, logits), router_logits, ARRAY},
                              {"ids", AT(kt_router_args, ids), router_choices, ARRAY},
                              {"weights", AT(kt_router_args, weights), router_choices, ARRAY}},
    [KT_OP_ROUTER_BACKWARD] = {{"logits", AT(kt_router_args, logits), router_logits, ARRAY},
                               {"ids", AT(kt_router_args, ids), router_choices, ARRAY},
                               {"dweights", AT(kt_router_args, dweights), router_choices, ARRAY},
                               {"dlogits", AT(kt_router_args, dlogits), router_logits, ARRAY}},
    [KT_OP_CROSS_ENTROPY] = {{"logits", AT(kt_cross_entropy_args, logits.data), loss_logits, OUT},
                             {"targets", AT(kt_cross_entropy_args, targets), loss_tokens, ARRAY},
                             {"dlogprobs", AT(kt_cross_entropy_args, dlogprobs), loss_gradient,
                              ARRAY},
                             {"logprobs", AT(kt_cross_entropy_args, logprobs), loss_tokens, ARRAY}},
    [KT_OP_ADD] = {{"x", AT(kt_rows_args, x.data), rows_x, IN},
                   {"y", AT(kt_rows_args, y.data), rows_y, OUT}},
    [KT_OP_ZERO] = {{"y", AT(kt_rows_args, y.data), rows_y, OUT}},
    [KT_OP_DROPOUT] = {{"index", AT(kt_dropout_args, index), dropout_index, ARRAY},
                       {"x", AT(kt_dropout_args, x.data), dropout_x, IN},
                       {"y", AT(kt_dropout_args, y.data), dropout_y, OUT}},
    [KT_OP_CONVERT] = {{"x", AT(kt_rows_args, x.data), rows_x, IN},
                       {"y", AT(kt_rows_args, y.data), rows_y, OUT}},
    [KT_OP_GATHER] = {{"index", AT(kt_gather_args, index), gather_index, ARRAY},
                      {"slots", AT(kt_gather_args, slots), gather_slots, ARRAY},
                      {"weights", AT(kt_gather_args, weights), gather_weights, ARRAY},
                      {"x", AT(kt_gather_args, x.data), gather_tokens_x, IN},
                      {"y", AT(kt_gather_args, y.data), gather_rows_y, OUT}},
    [KT_OP_SCATTER_ADD] = {{"token_rows", AT(kt_gather_args, token_rows), gather_token_rows, ARRAY},
                           {"slots", AT(kt_gather_args, slots), gather_slots, ARRAY},
                           {"weights", AT(kt_gather_args, weights), gather_weights, ARRAY},
                           {"x", AT(kt_gather_args, x.data), gather_rows_x, IN},
                           {"y", AT(kt_gather_args, y.data), gather_tokens_y, OUT}},
    [KT_OP_WEIGH] = {{"slots", AT(kt_weigh_args, slots), weigh_slots, ARRAY},
                     {"weights", AT(kt_weigh_args, weights), weigh_weights, ARRAY},
                     {"dweights", AT(kt_weigh_args, dweights), weigh_weights, ARRAY},
                     {"h", AT(kt_weigh_args, h.data), weigh_h, IN},
                     {"dh", AT(kt_weigh_args, dh.data), weigh_dh, OUT}},
};
