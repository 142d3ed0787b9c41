/* SPDX-License-Identifier: Apache-2.0 */
#include "model/binding.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/dtype.h"
#include "core/memory.h"

enum { NAME_BYTES = 256, VECTOR_ALIGN = 16 };

/* Binding runs twice over the same tables: the first round only checks and counts, so that sizes
 * from config.json are believed no further than there are tensors for them. */
struct binder {
    struct kt_model *model;
    int store;
    int64_t num_linears, num_experts, num_floats;
    uint64_t expert_parameters;
};

/* Writes `pattern` with the layer for %l and the expert for %e, then `suffix`. */
static void expand(const char *pattern, int32_t layer, int32_t expert, const char *suffix,
                   char name[NAME_BYTES])
{
    size_t used = 0;
    for (const char *p = pattern; *p && used < NAME_BYTES - 16; p++) {
        if (*p == '%')
            used += (size_t)snprintf(name + used, 16, "%d", *++p == 'l' ? layer : expert);
        else
            name[used++] = *p;
    }
    snprintf(name + used, NAME_BYTES - used, "%s", suffix);
}

static kt_status check_shape(kt_context *ctx, const struct kt_model_config *c,
                             const struct kt_tensor *t, enum kt_dim rows, enum kt_dim cols)
{
    const int64_t want[2] = {kt_dim_value(c, rows), kt_dim_value(c, cols)};
    int32_t ndim = cols == KT_DIM_NONE ? 1 : 2;
    char found[128], wanted[128];
    if (t->ndim == ndim && memcmp(t->shape, want, (size_t)ndim * sizeof *want) == 0)
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_MISMATCH,
                   "%s: tensor %s has shape %s, but config.json asks for %s (%s%s%s); are the two "
                   "from one checkpoint?",
                   t->file, t->name, kt_shape_text(t->ndim, t->shape, found, sizeof found),
                   kt_shape_text(ndim, want, wanted, sizeof wanted), kt_dim_keys(c, rows),
                   ndim == 2 ? " x " : "", ndim == 2 ? kt_dim_keys(c, cols) : "");
}

/* Matrices may be made of GGUF's blocks; vectors are widened and must be plain floats. */
static kt_status check_dtype(kt_context *ctx, const struct kt_tensor *t)
{
    const struct kt_format *format = kt_format_of(t->dtype);
    bool plain = t->dtype == KT_DTYPE_BF16 || t->dtype == KT_DTYPE_F16 || t->dtype == KT_DTYPE_F32;
    bool blocks = format && format->block >= 32 && t->ndim == 2;
    if (!plain && !blocks)
        return kt_fail(ctx, KT_ERROR_UNSUPPORTED,
                       "%s: tensor %s has dtype %s; libkt computes with BF16, F16 and F32 weights, "
                       "so convert the checkpoint to BF16 first",
                       t->file, t->name, t->dtype_name);
    if (plain && (uintptr_t)t->data % kt_dtype_size(t->dtype))
        return kt_fail(ctx, KT_ERROR_FORMAT,
                       "%s: tensor %s does not start at a multiple of its element size; write the "
                       "file again with a current safetensors package",
                       t->file, t->name);
    return KT_OK;
}

static uint64_t num_elements(const struct kt_tensor *t)
{
    return (uint64_t)t->shape[0] * (uint64_t)(t->ndim == 2 ? t->shape[1] : 1);
}

static kt_status find(struct binder *b, const char *name, enum kt_dim rows, enum kt_dim cols,
                      const struct kt_tensor **out)
{
    struct kt_model *m = b->model;
    const struct kt_tensor *t = kt_checkpoint_find(m->checkpoint, name);
    if (!t)
        return kt_fail(
            m->ctx, KT_ERROR_NOT_FOUND,
            "%s: tensor %s is missing; config.json of a %s model with %d layers asks for it",
            m->path, name, m->config.architecture->name, m->config.num_hidden_layers);
    KT_TRY(check_dtype(m->ctx, t));
    KT_TRY(check_shape(m->ctx, &m->config, t, rows, cols));
    uint8_t *used = &m->used[t - m->checkpoint->tensors];
    if (!*used) {
        m->num_parameters += num_elements(t);
        m->num_bytes += t->bytes;
    }
    *used = 1;
    *out = t;
    return KT_OK;
}

static kt_status take_vector(struct binder *b, const char *name, enum kt_dim rows, float **place)
{
    const struct kt_tensor *t;
    KT_TRY(find(b, name, rows, KT_DIM_NONE, &t));
    if (b->store) {
        *place = b->model->vectors + b->num_floats;
        kt_dtype_to_f32(t->dtype, t->data, *place, (size_t)t->shape[0]);
    }
    b->num_floats += (t->shape[0] + VECTOR_ALIGN - 1) / VECTOR_ALIGN * VECTOR_ALIGN;
    return KT_OK;
}

static kt_status take_matrix(struct binder *b, const char *name, const struct kt_binding *binding,
                             struct kt_weight *place)
{
    const struct kt_tensor *t;
    KT_TRY(find(b, name, binding->rows, binding->cols, &t));
    if (b->store)
        *place = (struct kt_weight){
            .data = t->data, .dtype = t->dtype, .rows = t->shape[0], .cols = t->shape[1]};
    return KT_OK;
}

static kt_status take_linear(struct binder *b, const struct kt_binding *binding, int32_t layer,
                             int32_t expert, uint32_t features, struct kt_linear **place)
{
    char name[NAME_BYTES];
    struct kt_linear *linear = b->store ? &b->model->linears[b->num_linears] : NULL;
    const char *pattern = binding->tensor ? binding->tensor : binding->name;
    expand(pattern, layer, expert, binding->tensor ? "" : ".weight", name);
    KT_TRY(take_matrix(b, name, binding, linear ? &linear->weight : NULL));
    if (binding->bias_if && (features & binding->bias_if) == binding->bias_if) {
        expand(pattern, layer, expert, ".bias", name);
        KT_TRY(take_vector(b, name, binding->rows, linear ? &linear->bias : NULL));
    }
    if (linear) {
        expand(binding->name, layer, expert, "", name);
        linear->role = binding->role;
        linear->index = (int32_t)b->num_linears;
        linear->name = strdup(name);
        if (!linear->name)
            return kt_fail_memory(b->model->ctx, NAME_BYTES, "the names of linear layers");
        *place = linear;
    }
    b->num_linears++;
    return KT_OK;
}

static kt_status take_experts(struct binder *b, const struct kt_binding *binding, int32_t layer,
                              uint32_t features, struct kt_layer *place)
{
    struct kt_model *m = b->model;
    uint64_t before = m->num_parameters;
    struct kt_weight *weights = b->store ? m->expert_weights + b->num_experts : NULL;
    for (int32_t e = 0; e < m->config.n_routed_experts; e++) {
        struct kt_linear *linear = NULL;
        KT_TRY(take_linear(b, binding, layer, e, features, &linear));
        if (linear && e == 0)
            place->experts[binding->place] = linear;
        if (linear)
            weights[e] = linear->weight;
    }
    if (b->store)
        place->expert_weights[binding->place] = weights;
    b->num_experts += m->config.n_routed_experts;
    b->expert_parameters += m->num_parameters - before;
    return KT_OK;
}

/* `base` is the kt_layer or kt_model; NULL in the first round. */
static kt_status take(struct binder *b, const struct kt_binding *binding, int32_t layer,
                      uint32_t features, void *base)
{
    char name[NAME_BYTES];
    void *place = base && binding->kind != KT_PLACE_EXPERT ? (char *)base + binding->place : base;
    switch (binding->kind) {
    case KT_PLACE_LINEAR:
        return take_linear(b, binding, layer, -1, features, place);
    case KT_PLACE_EXPERT:
        return take_experts(b, binding, layer, features, place);
    case KT_PLACE_MATRIX:
        expand(binding->name, layer, -1, ".weight", name);
        return take_matrix(b, name, binding, place);
    case KT_PLACE_VECTOR:
        expand(binding->tensor ? binding->tensor : binding->name, layer, -1,
               binding->tensor ? "" : ".weight", name);
        return take_vector(b, name, binding->rows, place);
    }
    return KT_OK;
}

static kt_status take_table(struct binder *b, const struct kt_binding *table, int32_t layer,
                            void *base)
{
    uint32_t features = kt_layer_features(&b->model->config, layer);
    for (const struct kt_binding *binding = table; binding->name; binding++)
        if ((features & binding->when) == binding->when)
            KT_TRY(take(b, binding, layer, features, base));
    return KT_OK;
}

static kt_status take_all(struct binder *b)
{
    struct kt_model *m = b->model;
    const struct kt_architecture *a = m->config.architecture;
    KT_TRY(take_table(b, a->model_bindings, -1, b->store ? m : NULL));
    for (int32_t i = 0; i < m->config.num_hidden_layers; i++)
        KT_TRY(take_table(b, a->layer_bindings, i, b->store ? &m->layers[i] : NULL));
    return KT_OK;
}

static kt_status allocate(const struct binder *b)
{
    struct kt_model *m = b->model;
    void *vectors;
    m->layers = calloc((size_t)m->config.num_hidden_layers, sizeof *m->layers);
    m->linears = calloc((size_t)b->num_linears, sizeof *m->linears);
    m->expert_weights = calloc((size_t)b->num_experts + 1, sizeof *m->expert_weights);
    if (!m->layers || !m->linears || !m->expert_weights)
        return kt_fail_memory(m->ctx, (uint64_t)b->num_linears * sizeof *m->linears,
                              "the list of linear layers");
    KT_TRY(kt_buffer_alloc(m->ctx, (uint64_t)b->num_floats, sizeof(float), "norms and biases",
                           &vectors));
    m->vectors = vectors;
    m->num_linears = (int32_t)b->num_linears;
    return KT_OK;
}

static void count_active(struct kt_model *m, uint64_t expert_parameters)
{
    const struct kt_model_config *c = &m->config;
    m->num_active_parameters = m->num_parameters;
    if (c->n_routed_experts)
        m->num_active_parameters -= expert_parameters / (uint64_t)c->n_routed_experts *
                                    (uint64_t)(c->n_routed_experts - c->router.topk);
    if (!c->tie_word_embeddings) /* a token reads one row of the table */
        m->num_active_parameters -= (uint64_t)(c->vocab_size - 1) * (uint64_t)c->hidden_size;
}

kt_status kt_model_bind(struct kt_model *m)
{
    struct binder b = {.model = m};
    KT_TRY(take_all(&b));
    KT_TRY(allocate(&b));
    count_active(m, b.expert_parameters);
    b = (struct binder){.model = m, .store = 1};
    KT_TRY(take_all(&b));
    for (int32_t i = 0; i < m->config.num_hidden_layers; i++) {
        struct kt_layer *layer = &m->layers[i];
        layer->is_moe = kt_config_is_moe(&m->config, i);
        layer->window = m->config.layers[i] & KT_LAYER_WINDOW ? m->config.sliding_window : 0;
        if (layer->router_linear)
            layer->router = layer->router_linear->weight;
        layer->mlp.intermediate_size = layer->mlp.gate ? layer->mlp.gate->weight.rows : 0;
    }
    return KT_OK;
}
