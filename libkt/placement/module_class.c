/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "placement/rule.h"

struct ending {
    const char *text;
    enum kt_module_class class;
};

static bool ends_with(const char *text, const char *ending)
{
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

static enum kt_module_class look_up(const struct ending *table, size_t num, const char *text)
{
    for (size_t i = 0; i < num; i++)
        if (ends_with(text, table[i].text))
            return table[i].class;
    return KT_CLASS_ANY;
}

enum kt_module_class kt_class_of_name(const char *python_class)
{
    static const struct ending table[] = {
        {"Linear", KT_CLASS_LINEAR},
        {"Attention", KT_CLASS_ATTENTION},
        {"FlashAttention2", KT_CLASS_ATTENTION},
        {"MoEGate", KT_CLASS_ROUTER},
        {"TopkRouter", KT_CLASS_ROUTER},
        {"MLP", KT_CLASS_MLP},
        {"MoE", KT_CLASS_MLP},
        {"MoeBlock", KT_CLASS_MLP},
        {"Norm", KT_CLASS_NORM},
        {"torch.nn.Embedding", KT_CLASS_EMBEDDING},
        {"RotaryEmbedding", KT_CLASS_ROTARY},
        {"Experts", KT_CLASS_EXPERTS},
        {"Model", KT_CLASS_MODEL},
        {"ForCausalLM", KT_CLASS_MODEL},
    };
    return look_up(table, sizeof table / sizeof *table, python_class);
}

enum kt_module_class kt_class_of_module(const char *module)
{
    static const struct ending table[] = {
        {"_proj", KT_CLASS_LINEAR},
        {"_proj_with_mqa", KT_CLASS_LINEAR},
        {"lm_head", KT_CLASS_LINEAR},
        {".w1", KT_CLASS_LINEAR},
        {".w2", KT_CLASS_LINEAR},
        {".w3", KT_CLASS_LINEAR},
        {".self_attn", KT_CLASS_ATTENTION},
        {".mlp", KT_CLASS_MLP},
        {".shared_experts", KT_CLASS_MLP},
        {".shared_expert", KT_CLASS_MLP},
        {".block_sparse_moe", KT_CLASS_MLP},
        {".experts", KT_CLASS_EXPERTS},
        {".gate", KT_CLASS_ROUTER},
        {"norm", KT_CLASS_NORM},
        {"embed_tokens", KT_CLASS_EMBEDDING},
        {"rotary_emb", KT_CLASS_ROTARY},
    };
    if (strcmp(module, "model") == 0 || !*module)
        return KT_CLASS_MODEL;
    return look_up(table, sizeof table / sizeof *table, module);
}
