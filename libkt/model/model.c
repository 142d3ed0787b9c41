/* SPDX-License-Identifier: Apache-2.0 */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/memory.h"
#include "model/binding.h"
#include "model/finite.h"
#include "model/gguf.h"

#define CHECK_ALL_UP_TO ((uint64_t)1 << 30)

void kt_model_options_init(kt_model_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_model_options){.check_finite = 1}, sizeof *options);
}

static kt_status check_finite(struct kt_model *m, int32_t level)
{
    return level ? kt_model_find_not_finite(m, level == 2 || m->num_bytes <= CHECK_ALL_UP_TO)
                 : KT_OK;
}

static kt_status open_files(struct kt_model *m)
{
    char *gguf;
    KT_TRY(kt_gguf_locate(m->ctx, m->path, &gguf));
    if (gguf) {
        kt_status status = kt_gguf_model_open(m->ctx, gguf, &m->config, &m->checkpoint);
        free(gguf);
        return status;
    }
    KT_TRY(kt_config_read(m->ctx, m->path, &m->config));
    return kt_checkpoint_open(m->ctx, m->path, &m->checkpoint);
}

static kt_status load(struct kt_model *m, const kt_model_options *options)
{
    KT_TRY(open_files(m));
    m->used = calloc(m->checkpoint->num_tensors + 1, 1);
    if (!m->used)
        return kt_fail_memory(m->ctx, m->checkpoint->num_tensors, "the list of tensors");
    KT_TRY(kt_model_bind(m));
    kt_model_account_unused(m);
    return check_finite(m, options->check_finite);
}

static void destroy(void *handle)
{
    struct kt_model *m = handle;
    for (int32_t i = 0; i < m->num_linears; i++)
        free(m->linears[i].name);
    free(m->linears);
    free(m->layers);
    free(m->expert_weights);
    kt_buffer_free(m->ctx, m->vectors);
    kt_checkpoint_close(m->checkpoint);
    free(m->used);
    free(m->path);
}

kt_status kt_model_load(kt_context *ctx, const char *path, const kt_model_options *options,
                        kt_model **out)
{
    kt_model_options o;
    KT_ENTER_CONTEXT_OUT(ctx, out);
    kt_model_options_init(&o, sizeof o);
    KT_TRY(kt_check_given(ctx, path, "the path of a model"));
    KT_TRY(kt_options_copy(ctx, &o, options, KT_SIZED(kt_model_options)));
    if (o.check_finite < 0 || o.check_finite > 2)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "check_finite is %d, not 0, 1 or 2",
                       o.check_finite);
    struct kt_model *m;
    KT_TRY(kt_handle_new(ctx, sizeof *m, destroy, "a model", (void **)&m));
    m->path = strdup(path);
    kt_status status = m->path ? load(m, &o) : kt_fail_memory(ctx, strlen(path), "a file name");
    if (status == KT_OK)
        *out = m;
    else
        kt_model_free(m);
    return status;
}

void kt_model_free(kt_model *model)
{
    kt_handle_free(model);
}

static int32_t num_dense_layers(const struct kt_model *m)
{
    int32_t num = 0;
    for (int32_t i = 0; i < m->config.num_hidden_layers; i++)
        num += !m->layers[i].is_moe;
    return num;
}

kt_status kt_model_get_info(const kt_model *m, kt_model_info *info)
{
    KT_TRY(kt_check_handle(m, __func__, "model"));
    const struct kt_model_config *c = &m->config;
    const kt_model_info known = {
        .architecture = c->architecture->name,
        .path = m->path,
        .num_hidden_layers = c->num_hidden_layers,
        .num_dense_layers = num_dense_layers(m),
        .hidden_size = c->hidden_size,
        .vocab_size = c->vocab_size,
        .num_attention_heads = c->num_attention_heads,
        .n_routed_experts = c->n_routed_experts,
        .num_experts_per_tok = c->router.topk,
        .n_shared_experts = c->n_shared_experts,
        .max_position_embeddings = kt_config_context(c),
        .bos_token_id = c->bos_token_id,
        .eos_token_id = c->eos_token_id,
        .num_parameters = m->num_parameters,
        .num_active_parameters = m->num_active_parameters,
        .num_bytes = m->num_bytes,
        .num_skipped_bytes = m->num_skipped_bytes,
    };
    return kt_give(m->ctx, info, &known, KT_SIZED(kt_model_info));
}

size_t kt_model_num_tensors(const kt_model *m)
{
    return m ? m->checkpoint->num_tensors : 0;
}

kt_status kt_model_get_tensor(const kt_model *m, size_t index, kt_tensor_info *info)
{
    KT_TRY(kt_check_handle(m, __func__, "model"));
    if (index >= m->checkpoint->num_tensors)
        return kt_fail(m->ctx, KT_ERROR_INVALID_ARGUMENT, "tensor %zu of %zu does not exist", index,
                       m->checkpoint->num_tensors);
    const struct kt_tensor *t = &m->checkpoint->tensors[index];
    kt_tensor_info known = {
        .name = t->name,
        .file = t->file,
        .dtype = t->dtype,
        .ndim = t->ndim,
        .num_bytes = t->bytes,
        .used = m->used[index],
    };
    memcpy(known.shape, t->shape, sizeof known.shape);
    if (m->used[index] == KT_TENSOR_WEIGHT && t->dtype == KT_DTYPE_U8) {
        known.dtype = KT_DTYPE_I4;
        known.shape[1] *= 2;
    }
    return kt_give(m->ctx, info, &known, KT_SIZED(kt_tensor_info));
}

size_t kt_model_num_linears(const kt_model *m)
{
    return m ? (size_t)m->num_linears : 0;
}

const char *kt_model_linear_name(const kt_model *m, size_t index)
{
    return index < kt_model_num_linears(m) ? m->linears[index].name : NULL;
}
