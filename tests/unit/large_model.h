/* SPDX-License-Identifier: Apache-2.0 */
/** \file large_model.h
 * A Qwen3-MoE checkpoint of any size with random BF16 weights, a shard a layer, none of it left in
 * memory. The scale of the weights keeps activations near one, so that routing spreads. */
#ifndef KT_TESTS_LARGE_MODEL_H
#define KT_TESTS_LARGE_MODEL_H

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/context.h"
#include "formats/safetensors.h"

struct large_model {
    int layers, hidden, experts, intermediate, vocab;
};

enum { LARGE_HEADS = 8, LARGE_KV_HEADS = 2, LARGE_HEAD_DIM = 64, LARGE_TENSORS = 512 };

struct large_shard {
    struct kt_tensor tensors[LARGE_TENSORS];
    size_t num;
    uint64_t random;
};

static inline uint16_t *large_numbers(struct large_shard *s, int64_t rows, int64_t cols)
{
    uint16_t *data = malloc((size_t)(rows * cols) * sizeof *data);
    float scale = sqrtf(12 / (float)cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        s->random = s->random * 6364136223846793005u + 1442695040888963407u;
        float x = rows == 1 ? 1 : scale * ((float)(s->random >> 40) * 0x1p-24f - 0.5f);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        data[i] = (uint16_t)(bits >> 16);
    }
    return data;
}

/** A vector of ones where rows is 1. */
__attribute__((format(printf, 4, 5))) static inline void
large_add(struct large_shard *s, int64_t rows, int64_t cols, const char *format, ...)
{
    char name[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    s->tensors[s->num++] = (struct kt_tensor){.name = strdup(name),
                                              .dtype = KT_DTYPE_BF16,
                                              .ndim = rows == 1 ? 1 : 2,
                                              .shape = {rows == 1 ? cols : rows, cols},
                                              .data = large_numbers(s, rows, cols),
                                              .bytes = (uint64_t)(rows * cols) * 2};
}

static inline void large_add_layer(struct large_shard *s, const struct large_model *m, int layer)
{
    const char *names[] = {"gate_proj", "up_proj", "down_proj"};
    int64_t hidden = m->hidden, inner = m->intermediate;
    int64_t q = LARGE_HEADS * LARGE_HEAD_DIM, kv = LARGE_KV_HEADS * LARGE_HEAD_DIM;
    char path[64];
    snprintf(path, sizeof path, "model.layers.%d", layer);
    large_add(s, 1, hidden, "%s.input_layernorm.weight", path);
    large_add(s, 1, hidden, "%s.post_attention_layernorm.weight", path);
    large_add(s, 1, LARGE_HEAD_DIM, "%s.self_attn.q_norm.weight", path);
    large_add(s, 1, LARGE_HEAD_DIM, "%s.self_attn.k_norm.weight", path);
    large_add(s, q, hidden, "%s.self_attn.q_proj.weight", path);
    large_add(s, kv, hidden, "%s.self_attn.k_proj.weight", path);
    large_add(s, kv, hidden, "%s.self_attn.v_proj.weight", path);
    large_add(s, hidden, q, "%s.self_attn.o_proj.weight", path);
    large_add(s, m->experts, hidden, "%s.mlp.gate.weight", path);
    for (int e = 0; e < m->experts; e++)
        for (int k = 0; k < 3; k++)
            large_add(s, k == 2 ? hidden : inner, k == 2 ? inner : hidden,
                      "%s.mlp.experts.%d.%s.weight", path, e, names[k]);
}

/** Writes a file to disk and drops it from memory. */
static inline void large_forget(const char *path)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return;
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static inline void large_shard_path(const char *folder, const struct large_model *m, int shard,
                                    char *path, size_t size)
{
    snprintf(path, size, "%s/model-%05d-of-%05d.safetensors", folder, shard + 1, m->layers + 1);
}

/** Writes a shard, adds its tensors to the index and frees them. Its bytes. */
static inline uint64_t large_write_shard(kt_context *ctx, const char *folder,
                                         const struct large_model *m, struct large_shard *s,
                                         int shard, FILE *index)
{
    char path[PATH_MAX];
    uint64_t bytes = 0;
    large_shard_path(folder, m, shard, path, sizeof path);
    if (kt_safetensors_write(ctx, path, s->tensors, s->num, NULL) != KT_OK) {
        fprintf(stderr, "%s\n", kt_last_error(ctx));
        exit(1);
    }
    for (size_t i = 0; i < s->num; i++) {
        fprintf(index, "%s\"%s\":\"%s\"", shard || i ? "," : "", s->tensors[i].name,
                strrchr(path, '/') + 1);
        bytes += s->tensors[i].bytes;
        free((void *)(uintptr_t)s->tensors[i].name);
        free((void *)(uintptr_t)s->tensors[i].data);
    }
    s->num = 0;
    large_forget(path);
    return bytes;
}

static inline void large_write_config(const char *folder, const struct large_model *m)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", folder);
    FILE *f = fopen(path, "w");
    fprintf(f,
            "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"model_type\":\"qwen3_moe\","
            "\"attention_bias\":false,\"bos_token_id\":0,\"eos_token_id\":1,"
            "\"decoder_sparse_step\":1,\"mlp_only_layers\":[],\"head_dim\":%d,"
            "\"hidden_act\":\"silu\",\"hidden_size\":%d,\"intermediate_size\":%d,"
            "\"moe_intermediate_size\":%d,\"max_position_embeddings\":2048,"
            "\"norm_topk_prob\":true,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
            "\"num_experts\":%d,\"num_experts_per_tok\":2,\"num_hidden_layers\":%d,"
            "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"tie_word_embeddings\":false,"
            "\"vocab_size\":%d,\"torch_dtype\":\"bfloat16\"}\n",
            LARGE_HEAD_DIM, m->hidden, m->intermediate, m->intermediate, LARGE_HEADS,
            LARGE_KV_HEADS, m->experts, m->layers, m->vocab);
    fclose(f);
}

/** Bytes of the weights. */
static inline uint64_t large_model_write(kt_context *ctx, const char *folder,
                                         const struct large_model *m)
{
    struct large_shard *s = calloc(1, sizeof *s);
    uint64_t bytes = 0;
    char path[PATH_MAX];
    mkdir(folder, 0755);
    large_write_config(folder, m);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    FILE *index = fopen(path, "w");
    s->random = 1;
    fprintf(index, "{\"weight_map\":{");
    large_add(s, m->vocab, m->hidden, "model.embed_tokens.weight");
    large_add(s, m->vocab, m->hidden, "lm_head.weight");
    large_add(s, 1, m->hidden, "model.norm.weight");
    bytes += large_write_shard(ctx, folder, m, s, 0, index);
    for (int l = 0; l < m->layers; l++) {
        large_add_layer(s, m, l);
        bytes += large_write_shard(ctx, folder, m, s, l + 1, index);
    }
    fprintf(index, "}}\n");
    fclose(index);
    free(s);
    return bytes;
}

/** Drops what of it is in memory. */
static inline void large_model_forget(const char *folder, const struct large_model *m)
{
    char path[PATH_MAX];
    for (int shard = 0; shard <= m->layers; shard++) {
        large_shard_path(folder, m, shard, path, sizeof path);
        large_forget(path);
    }
}

#endif
