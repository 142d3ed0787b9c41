/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/safetensors_header.h"
#include "model/gguf.h"
#include "model/gguf_rebuild.h"

enum { NAME_BYTES = 256, MAX_EXPERTS = 65536, MAX_HEADS = 65536, MAX_TENSORS = 1 << 24 };

/* Modules of a layer: "blk.N.FROM.weight" is "model.layers.N.TO.weight", and likewise biases. With
 * %d for the expert it is the tensor of all experts. */
static const struct rename {
    const char *from, *to, *architecture; /* NULL = any that has it */
} modules[] = {
    {"attn_norm", "input_layernorm", NULL},
    {"ffn_norm", "post_attention_layernorm", NULL},
    {"attn_q", "self_attn.q_proj", NULL},
    {"attn_k", "self_attn.k_proj", NULL},
    {"attn_v", "self_attn.v_proj", NULL},
    {"attn_output", "self_attn.o_proj", NULL},
    {"attn_q_norm", "self_attn.q_norm", NULL},
    {"attn_k_norm", "self_attn.k_norm", NULL},
    {"attn_q_a", "self_attn.q_a_proj", NULL},
    {"attn_q_a_norm", "self_attn.q_a_layernorm", NULL},
    {"attn_q_b", "self_attn.q_b_proj", NULL},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", NULL},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm", NULL},
    {"attn_kv_b", "self_attn.kv_b_proj", NULL},
    {"ffn_gate", "mlp.gate_proj", NULL},
    {"ffn_up", "mlp.up_proj", NULL},
    {"ffn_down", "mlp.down_proj", NULL},
    {"ffn_gate_inp", "block_sparse_moe.gate", "llama"}, /* with experts it is Mixtral */
    {"ffn_gate_exps", "block_sparse_moe.experts.%d.w1", "llama"},
    {"ffn_up_exps", "block_sparse_moe.experts.%d.w3", "llama"},
    {"ffn_down_exps", "block_sparse_moe.experts.%d.w2", "llama"},
    {"ffn_gate_inp", "mlp.gate", NULL},
    {"ffn_gate_exps", "mlp.experts.%d.gate_proj", NULL},
    {"ffn_up_exps", "mlp.experts.%d.up_proj", NULL},
    {"ffn_down_exps", "mlp.experts.%d.down_proj", NULL},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj", "deepseek2"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj", "deepseek2"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj", "deepseek2"},
    {"ffn_gate_shexp", "mlp.shared_expert.gate_proj", "qwen2moe"},
    {"ffn_up_shexp", "mlp.shared_expert.up_proj", "qwen2moe"},
    {"ffn_down_shexp", "mlp.shared_expert.down_proj", "qwen2moe"},
    {"ffn_gate_inp_shexp", "mlp.shared_expert_gate", "qwen2moe"},
};

static const struct rename whole_names[] = {
    {"token_embd.weight", "model.embed_tokens.weight", NULL},
    {"output_norm.weight", "model.norm.weight", NULL},
    {"output.weight", "lm_head.weight", NULL},
};

static const char key_part[] = ".attn_k_b.", value_part[] = ".attn_v_b.";

struct naming {
    kt_context *ctx;
    const char *architecture;
    int64_t query_heads, key_heads; /* whose rows are interleaved; 0 = they are not */
    struct kt_checkpoint *to;
};

static const char *find_module(const struct naming *n, const char *name, size_t length)
{
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        const struct rename *r = &modules[i];
        if (strncmp(r->from, name, length) == 0 && !r->from[length] &&
            (!r->architecture || strcmp(r->architecture, n->architecture) == 0))
            return r->to;
    }
    return NULL;
}

/* The name in the checkpoint. True when the tensor is one of all experts: %d stands for the expert.
 */
static bool new_name(const struct naming *n, const char *name, char to[NAME_BYTES])
{
    int layer, begin = 0;
    snprintf(to, NAME_BYTES, "%s", name);
    for (size_t i = 0; i < sizeof whole_names / sizeof *whole_names; i++)
        if (strcmp(name, whole_names[i].from) == 0)
            snprintf(to, NAME_BYTES, "%s", whole_names[i].to);
    if (sscanf(name, "blk.%9d.%n", &layer, &begin) != 1 || !begin || layer < 0)
        return false;
    const char *suffix = strrchr(name, '.'), *module = name + begin;
    if (strncmp(module, "exp_probs_b", 11) == 0) {
        snprintf(to, NAME_BYTES, "model.layers.%d.mlp.gate.e_score_correction_bias", layer);
        return false;
    }
    const char *found = suffix > module ? find_module(n, module, (size_t)(suffix - module)) : NULL;
    if (found)
        snprintf(to, NAME_BYTES, "model.layers.%d.%s%s", layer, found, suffix);
    else
        snprintf(to, NAME_BYTES, "model.layers.%d.%s", layer, module);
    return found && strstr(found, "%d");
}

static kt_status add(const struct naming *n, const struct kt_tensor *t, const char *dtype_name,
                     const char *name)
{
    struct kt_tensor *to = &n->to->tensors[n->to->num_tensors++];
    *to = *t;
    to->name = strdup(name);
    to->dtype_name = strdup(dtype_name);
    return to->name && to->dtype_name ? KT_OK : kt_fail_memory(n->ctx, 0, "the list of tensors");
}

/* Takes the buffer of a tensor that was rebuilt. */
static kt_status own(const struct naming *n, kt_status status, const struct kt_tensor *t)
{
    if (status == KT_OK)
        n->to->owned[n->to->num_owned++] = (void *)t->data;
    return status;
}

/* The first dimension counts the experts. */
static kt_status add_experts(const struct naming *n, const struct kt_tensor *t, const char *pattern)
{
    struct kt_tensor one = *t;
    const char *number = strstr(pattern, "%d");
    char name[NAME_BYTES + 16];
    one.ndim = 2;
    memmove(one.shape, t->shape + 1, 2 * sizeof *one.shape);
    one.bytes = t->bytes / (uint64_t)t->shape[0];
    for (int64_t e = 0; e < t->shape[0]; e++) {
        one.data = (const char *)t->data + (uint64_t)e * one.bytes;
        snprintf(name, sizeof name, "%.*s%lld%s", (int)(number - pattern), pattern, (long long)e,
                 number + 2);
        KT_TRY(add(n, &one, t->dtype_name, name));
    }
    return KT_OK;
}

static kt_status add_renamed(const struct naming *n, const struct kt_tensor *t)
{
    char name[NAME_BYTES];
    struct kt_tensor plain = *t;
    if (new_name(n, t->name, name))
        return add_experts(n, t, name);
    /* The gate of a shared expert is one row, which the file has as a vector. */
    if (t->ndim == 1 && strstr(name, "shared_expert_gate.weight")) {
        plain.ndim = 2;
        plain.shape[1] = t->shape[0];
        plain.shape[0] = 1;
    }
    KT_TRY(add(n, &plain, t->dtype_name, name));
    int64_t heads = strstr(name, ".self_attn.q_proj.")   ? n->query_heads
                    : strstr(name, ".self_attn.k_proj.") ? n->key_heads
                                                         : 0;
    struct kt_tensor *added = &n->to->tensors[n->to->num_tensors - 1];
    return heads ? own(n, kt_gguf_order_rows(n->ctx, t, heads, added), added) : KT_OK;
}

/* The tensor of the same layer with another module: `from` is in the name of `t`. */
static const struct kt_tensor *sibling(const struct kt_gguf *g, const struct kt_tensor *t,
                                       const char *from, const char *to)
{
    char name[NAME_BYTES];
    const char *at = strstr(t->name, from);
    snprintf(name, sizeof name, "%.*s%s%s", (int)(at - t->name), t->name, to, at + strlen(from));
    return kt_gguf_find(g, name);
}

/* Parts of kv_b_proj: nothing comes of attn_v_b, and nothing of attn_k_b where the whole is there
 * too. */
static kt_status add_kv_b(const struct naming *n, const struct kt_gguf *g,
                          const struct kt_tensor *t)
{
    struct kt_tensor *to;
    char name[NAME_BYTES];
    int layer = 0;
    if (strstr(t->name, value_part) || sibling(g, t, key_part, ".attn_kv_b."))
        return KT_OK;
    const struct kt_tensor *values = sibling(g, t, key_part, value_part);
    if (!values)
        return kt_fail(n->ctx, KT_ERROR_NOT_FOUND, "%s: tensor %s has no attn_v_b beside it",
                       t->file, t->name);
    sscanf(t->name, "blk.%9d.", &layer);
    snprintf(name, sizeof name, "model.layers.%d.self_attn.kv_b_proj.weight", layer);
    KT_TRY(add(n, t, "F32", name));
    to = &n->to->tensors[n->to->num_tensors - 1];
    return own(n, kt_gguf_join_kv_b(n->ctx, t, values, to), to);
}

/* How many tensors `t` becomes. */
static kt_status count(const struct naming *n, const struct kt_tensor *t, uint64_t *num)
{
    char name[NAME_BYTES];
    if (!new_name(n, t->name, name)) {
        ++*num;
        return KT_OK;
    }
    *num += (uint64_t)t->shape[0];
    if (t->ndim == 3 && t->shape[0] <= MAX_EXPERTS && *num <= MAX_TENSORS)
        return KT_OK;
    return kt_fail(
        n->ctx, KT_ERROR_FORMAT,
        "%s: tensor %s has %d dimensions and %lld experts; it must have 3 and at most %d", t->file,
        t->name, t->ndim, (long long)t->shape[0], MAX_EXPERTS);
}

static kt_status fill(const struct naming *n, const struct kt_gguf *g)
{
    uint64_t num = 0;
    for (size_t i = 0; i < g->num_tensors; i++)
        KT_TRY(count(n, &g->tensors[i], &num));
    n->to->tensors = calloc((size_t)num + 1, sizeof *n->to->tensors);
    if (!n->to->tensors)
        return kt_fail_memory(n->ctx, num * sizeof *n->to->tensors, "the list of tensors");
    n->to->owned = calloc(g->num_tensors + 1, sizeof *n->to->owned);
    if (!n->to->owned)
        return kt_fail_memory(n->ctx, g->num_tensors, "the list of tensors");
    for (size_t i = 0; i < g->num_tensors; i++) {
        const struct kt_tensor *t = &g->tensors[i];
        if (strcmp(t->name, "rope_freqs.weight") == 0) /* config.json has what it comes from */
            continue;
        bool part = strstr(t->name, key_part) || strstr(t->name, value_part);
        KT_TRY(part ? add_kv_b(n, g, t) : add_renamed(n, t));
    }
    return kt_checkpoint_sort(n->to);
}

static kt_status read_heads(struct naming *n, const struct kt_gguf *g)
{
    struct kt_json json = kt_gguf_json(g);
    KT_TRY(kt_json_int(&json, "llama.attention.head_count", KT_JSON_REQUIRED, 1, MAX_HEADS,
                       &n->query_heads));
    n->key_heads = n->query_heads;
    return kt_json_int(&json, "llama.attention.head_count_kv", KT_JSON_OPTIONAL, 1, MAX_HEADS,
                       &n->key_heads);
}

kt_status kt_gguf_checkpoint(struct kt_gguf *g, struct kt_checkpoint **out)
{
    struct naming n = {.ctx = g->ctx};
    *out = NULL;
    KT_TRY(kt_gguf_check_architecture(g, &n.architecture));
    if (strcmp(n.architecture, "llama") == 0)
        KT_TRY(read_heads(&n, g));
    n.to = calloc(1, sizeof *n.to);
    if (!n.to)
        return kt_fail_memory(g->ctx, sizeof *n.to, "a checkpoint");
    n.to->ctx = g->ctx;
    kt_status status = fill(&n, g);
    if (status != KT_OK) {
        kt_checkpoint_close(n.to);
        return status;
    }
    n.to->files = g->files;
    n.to->num_files = g->num_files;
    kt_tensors_free(g->tensors, g->num_tensors);
    g->tensors = NULL;
    g->files = NULL;
    g->num_tensors = g->num_files = 0;
    *out = n.to;
    return KT_OK;
}
