/* SPDX-License-Identifier: Apache-2.0 */
/* What the operations read and write: where each operand's address stands in the arguments, and how
 * far it reaches. */
#include <stddef.h>

#include "backends/cpu_far/far.h"

/* Bytes from the first element of a matrix to behind its last. */
static uint64_t matrix(const struct kt_view *v, int64_t rows, int64_t cols)
{
    if (rows <= 0 || cols <= 0)
        return 0;
    return (uint64_t)(((rows - 1) * v->ld + cols) * kt_view_element(v->dtype));
}

/* The same where a row is `num` heads, `stride` elements apart. */
static uint64_t heads(const struct kt_view *v, int64_t rows, int64_t num, int64_t stride,
                      int64_t dim)
{
    return dim > 0 ? matrix(v, rows, (num - 1) * stride + dim) : 0;
}

static uint64_t words(int64_t num)
{
    return 4 * (uint64_t)num;
}

static uint64_t weight_data(const struct kt_weight *w)
{
    return (uint64_t)w->rows * kt_format_row_bytes(w->dtype, w->cols);
}

static uint64_t weight_scale(const struct kt_weight *w)
{
    if (!w->scale || !w->rows || !w->cols)
        return 0;
    return words(kt_weight_scale(w, w->rows - 1, w->cols - 1) - w->scale + 1);
}

static int64_t total(const struct kt_offsets *offsets)
{
    return offsets->num ? offsets->host[offsets->num] : 0;
}

#define BYTES(name, type, bytes)                                                                   \
    static uint64_t name(const void *args)                                                         \
    {                                                                                              \
        const struct type *a = args;                                                               \
        return bytes;                                                                              \
    }

BYTES(linear_weight, kt_linear_args, a->tokens ? weight_data(&a->weight) : 0)
BYTES(linear_scale, kt_linear_args, a->tokens ? weight_scale(&a->weight) : 0)
BYTES(forward_x, kt_linear_args, matrix(&a->x, a->tokens, a->weight.cols))
BYTES(forward_y, kt_linear_args, matrix(&a->y, a->tokens, a->weight.rows))
BYTES(backward_x, kt_linear_args, matrix(&a->x, a->tokens, a->weight.rows))
BYTES(backward_y, kt_linear_args, matrix(&a->y, a->tokens, a->weight.cols))

static uint64_t factor(const struct kt_gemm_args *a, const struct kt_view *v, bool trans,
                       int64_t rows, int64_t cols)
{
    if (!a->m || !a->n)
        return 0;
    return trans ? matrix(v, cols, rows) : matrix(v, rows, cols);
}

BYTES(gemm_a, kt_gemm_args, factor(a, &a->a, a->trans_a, a->m, a->k))
BYTES(gemm_b, kt_gemm_args, factor(a, &a->b, a->trans_b, a->k, a->n))
BYTES(gemm_c, kt_gemm_args, matrix(&a->c, a->m, a->n))

BYTES(embedding_table, kt_embedding_args, a->tokens ? weight_data(&a->table) : 0)
BYTES(embedding_scale, kt_embedding_args, a->tokens ? weight_scale(&a->table) : 0)
BYTES(embedding_ids, kt_embedding_args, words(a->tokens))
BYTES(embedding_x, kt_embedding_args, matrix(&a->x, a->tokens, a->table.cols))

BYTES(norm_weight, kt_norm_args, a->tokens ? words(a->dim) : 0)
BYTES(norm_x, kt_norm_args, matrix(&a->x, a->tokens, a->dim))
BYTES(norm_dy, kt_norm_args, matrix(&a->dy, a->tokens, a->dim))
BYTES(norm_y, kt_norm_args, matrix(&a->y, a->tokens, a->dim))

/* at least a row: how many there are, only the operation sees */
BYTES(rope_table, kt_rope_args, a->tokens ? words(a->rope_dim / 2) : 0)
BYTES(rope_rows, kt_rope_args, words(a->tokens))
BYTES(rope_x, kt_rope_args, heads(&a->x, a->tokens, a->num_heads, a->head_stride, a->rope_dim))

BYTES(queries, kt_attention_args, a->queries.num ? words(a->queries.num + 1) : 0)
BYTES(keys, kt_attention_args, a->keys.num ? words(a->keys.num + 1) : 0)
BYTES(attention_q, kt_attention_args,
      heads(&a->q, total(&a->queries), a->num_heads, a->q_head_stride, a->qk_dim))
BYTES(attention_k, kt_attention_args,
      heads(&a->k, total(&a->keys), a->num_kv_heads, a->k_head_stride, a->qk_dim - a->shared_dim))
BYTES(attention_k_shared, kt_attention_args, matrix(&a->k_shared, total(&a->keys), a->shared_dim))
BYTES(attention_v, kt_attention_args,
      heads(&a->v, total(&a->keys), a->num_kv_heads, a->v_head_stride, a->v_dim))
BYTES(attention_o, kt_attention_args,
      heads(&a->o, total(&a->queries), a->num_heads, a->o_head_stride, a->v_dim))
BYTES(attention_lse, kt_attention_args, words(a->num_heads *total(&a->queries)))
BYTES(attention_lse_out, kt_attention_args, a->lse ? attention_lse(a) : 0)

BYTES(glu_operand, kt_glu_args, words(a->tokens * a->dim))

BYTES(router_logits, kt_router_args, words(a->tokens * a->router.num_experts))
BYTES(router_choices, kt_router_args, words(a->tokens * a->router.topk))
BYTES(router_bias, kt_router_args,
      a->tokens && a->router.correction_bias ? words(a->router.num_experts) : 0)

BYTES(loss_logits, kt_cross_entropy_args, matrix(&a->logits, a->tokens, a->vocab))
BYTES(loss_tokens, kt_cross_entropy_args, words(a->tokens))
BYTES(loss_gradient, kt_cross_entropy_args, a->dlogprobs ? words(a->tokens) : 0)

BYTES(rows_x, kt_rows_args, matrix(&a->x, a->tokens, a->dim))
BYTES(rows_y, kt_rows_args, matrix(&a->y, a->tokens, a->dim))

BYTES(dropout_index, kt_dropout_args, a->index ? words(a->tokens) : 0)
BYTES(dropout_x, kt_dropout_args, matrix(&a->x, a->tokens, a->dim))
BYTES(dropout_y, kt_dropout_args, matrix(&a->y, a->tokens, a->dim))

BYTES(gather_index, kt_gather_args, a->index ? words(a->rows) : 0)
BYTES(gather_slots, kt_gather_args, a->weights ? words(a->rows) : 0)
BYTES(gather_weights, kt_gather_args, a->rows && a->weights ? words(a->num_slots) : 0)
BYTES(gather_rows_x, kt_gather_args, matrix(&a->x, a->rows, a->dim))
BYTES(gather_rows_y, kt_gather_args, matrix(&a->y, a->rows, a->dim))
BYTES(gather_tokens_x, kt_gather_args, a->rows ? matrix(&a->x, a->tokens, a->dim) : 0)
BYTES(gather_tokens_y, kt_gather_args, a->rows ? matrix(&a->y, a->tokens, a->dim) : 0)

BYTES(weigh_slots, kt_weigh_args, words(a->rows))
BYTES(weigh_weights, kt_weigh_args, a->rows ? words(a->num_slots) : 0)
BYTES(weigh_h, kt_weigh_args, matrix(&a->h, a->rows, a->dim))
BYTES(weigh_dh, kt_weigh_args, matrix(&a->dh, a->rows, a->dim))

/* The strides and element types of a gradient are its operand's. */
#define AT(type, member) offsetof(struct type, member)
#define LINEAR(member) AT(kt_linear_args, member)
#define ATTENTION(member) AT(kt_attention_args, member)
#define ATTENTION_OPERANDS                                                                         \
    {"queries", ATTENTION(queries.device), queries}, {"keys", ATTENTION(keys.device), keys},       \
        {"q", ATTENTION(q.data), attention_q}, {"k", ATTENTION(k.data), attention_k},              \
        {"k_shared", ATTENTION(k_shared.data), attention_k_shared},                                \
        {"v", ATTENTION(v.data), attention_v},                                                     \
    {                                                                                              \
        "o", ATTENTION(o.data), attention_o                                                        \
    }

const struct kt_far_operand kt_far_operands[KT_OPS][KT_FAR_OPERANDS] = {
    [KT_OP_LINEAR_FORWARD] = {{"weight", LINEAR(weight.data), linear_weight},
                              {"weight's scale", LINEAR(weight.scale), linear_scale},
                              {"x", LINEAR(x.data), forward_x},
                              {"y", LINEAR(y.data), forward_y}},
    [KT_OP_LINEAR_BACKWARD] = {{"weight", LINEAR(weight.data), linear_weight},
                               {"weight's scale", LINEAR(weight.scale), linear_scale},
                               {"x", LINEAR(x.data), backward_x},
                               {"y", LINEAR(y.data), backward_y}},
    [KT_OP_GEMM] = {{"a", AT(kt_gemm_args, a.data), gemm_a},
                    {"b", AT(kt_gemm_args, b.data), gemm_b},
                    {"c", AT(kt_gemm_args, c.data), gemm_c}},
    [KT_OP_EMBEDDING] = {{"table", AT(kt_embedding_args, table.data), embedding_table},
                         {"table's scale", AT(kt_embedding_args, table.scale), embedding_scale},
                         {"ids", AT(kt_embedding_args, ids), embedding_ids},
                         {"x", AT(kt_embedding_args, x.data), embedding_x}},
    [KT_OP_NORM_FORWARD] = {{"weight", AT(kt_norm_args, weight), norm_weight},
                            {"x", AT(kt_norm_args, x.data), norm_x},
                            {"y", AT(kt_norm_args, y.data), norm_y}},
    [KT_OP_NORM_BACKWARD] = {{"weight", AT(kt_norm_args, weight), norm_weight},
                             {"x", AT(kt_norm_args, x.data), norm_x},
                             {"dy", AT(kt_norm_args, dy.data), norm_dy},
                             {"y", AT(kt_norm_args, y.data), norm_y}},
    [KT_OP_ROPE] = {{"x", AT(kt_rope_args, x.data), rope_x},
                    {"cos", AT(kt_rope_args, cos), rope_table},
                    {"sin", AT(kt_rope_args, sin), rope_table},
                    {"rows", AT(kt_rope_args, rows), rope_rows}},
    [KT_OP_ATTENTION_FORWARD] = {ATTENTION_OPERANDS, {"lse", ATTENTION(lse), attention_lse_out}},
    [KT_OP_ATTENTION_BACKWARD] = {ATTENTION_OPERANDS,
                                  {"lse", ATTENTION(lse), attention_lse},
                                  {"d_o", ATTENTION(d_o.data), attention_o},
                                  {"dq", ATTENTION(dq.data), attention_q},
                                  {"dk", ATTENTION(dk.data), attention_k},
                                  {"dk_shared", ATTENTION(dk_shared.data), attention_k_shared},
                                  {"dv", ATTENTION(dv.data), attention_v}},
    [KT_OP_GLU_FORWARD] = {{"gate", AT(kt_glu_args, gate.data), glu_operand},
                           {"up", AT(kt_glu_args, up.data), glu_operand},
                           {"h", AT(kt_glu_args, h.data), glu_operand}},
    [KT_OP_GLU_BACKWARD] = {{"gate", AT(kt_glu_args, gate.data), glu_operand},
                            {"up", AT(kt_glu_args, up.data), glu_operand},
                            {"dh", AT(kt_glu_args, dh.data), glu_operand},
                            {"dgate", AT(kt_glu_args, dgate.data), glu_operand},
                            {"dup", AT(kt_glu_args, dup.data), glu_operand}},
    [KT_OP_ROUTER_FORWARD] = {{"correction_bias", AT(kt_router_args, router.correction_bias),
                               router_bias},
                              {"logits", AT(kt_router_args, logits), router_logits},
                              {"ids", AT(kt_router_args, ids), router_choices},
                              {"weights", AT(kt_router_args, weights), router_choices}},
    [KT_OP_ROUTER_BACKWARD] = {{"logits", AT(kt_router_args, logits), router_logits},
                               {"ids", AT(kt_router_args, ids), router_choices},
                               {"dweights", AT(kt_router_args, dweights), router_choices},
                               {"dlogits", AT(kt_router_args, dlogits), router_logits}},
    [KT_OP_CROSS_ENTROPY] = {{"logits", AT(kt_cross_entropy_args, logits.data), loss_logits},
                             {"targets", AT(kt_cross_entropy_args, targets), loss_tokens},
                             {"dlogprobs", AT(kt_cross_entropy_args, dlogprobs), loss_gradient},
                             {"logprobs", AT(kt_cross_entropy_args, logprobs), loss_tokens}},
    [KT_OP_ADD] = {{"x", AT(kt_rows_args, x.data), rows_x},
                   {"y", AT(kt_rows_args, y.data), rows_y}},
    [KT_OP_ZERO] = {{"y", AT(kt_rows_args, y.data), rows_y}},
    [KT_OP_DROPOUT] = {{"index", AT(kt_dropout_args, index), dropout_index},
                       {"x", AT(kt_dropout_args, x.data), dropout_x},
                       {"y", AT(kt_dropout_args, y.data), dropout_y}},
    [KT_OP_CONVERT] = {{"x", AT(kt_rows_args, x.data), rows_x},
                       {"y", AT(kt_rows_args, y.data), rows_y}},
    [KT_OP_GATHER] = {{"index", AT(kt_gather_args, index), gather_index},
                      {"slots", AT(kt_gather_args, slots), gather_slots},
                      {"weights", AT(kt_gather_args, weights), gather_weights},
                      {"x", AT(kt_gather_args, x.data), gather_tokens_x},
                      {"y", AT(kt_gather_args, y.data), gather_rows_y}},
    [KT_OP_SCATTER_ADD] = {{"index", AT(kt_gather_args, index), gather_index},
                           {"slots", AT(kt_gather_args, slots), gather_slots},
                           {"weights", AT(kt_gather_args, weights), gather_weights},
                           {"x", AT(kt_gather_args, x.data), gather_rows_x},
                           {"y", AT(kt_gather_args, y.data), gather_tokens_y}},
    [KT_OP_WEIGH] = {{"slots", AT(kt_weigh_args, slots), weigh_slots},
                     {"weights", AT(kt_weigh_args, weights), weigh_weights},
                     {"dweights", AT(kt_weigh_args, dweights), weigh_weights},
                     {"h", AT(kt_weigh_args, h.data), weigh_h},
                     {"dh", AT(kt_weigh_args, dh.data), weigh_dh}},
};
