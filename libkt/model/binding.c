/* SPDX-License-Identifier: Apache-2.0 */
#include "model/binding.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "weights/dtype.h"
#include "core/memory.h"
#include "model/quantization.h"

enum { NAME_BYTES = 256, VECTOR_ALIGN = 16 };

/* Binding runs twice over the same tables: the first round only checks and counts, so that sizes
 * from config.json are believed no further than there are tensors for them. */
struct binder {
    struct kt_model *model;
    bool store;
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
                             const struct kt_tensor *t, int32_t ndim, const int64_t *shape,
                             enum kt_dim rows, enum kt_dim cols)
{
    const int64_t want[2] = {kt_dim_value(c, rows), kt_dim_value(c, cols)};
    int32_t wanted_ndim = cols == KT_DIM_NONE ? 1 : 2;
    char found[128], wanted[128];
    if (ndim == wanted_ndim && memcmp(shape, want, (size_t)ndim * sizeof *want) == 0)
        return KT_OK;
    return kt_fail(ctx, KT_ERROR_MISMATCH,
                   "%s: tensor %s has shape %s, but config.json asks for %s (%s%s%s); are the two "
                   "from one checkpoint?",
                   t->file, t->name, kt_shape_text(ndim, shape, found, sizeof found),
                   kt_shape_text(wanted_ndim, want, wanted, sizeof wanted), kt_dim_keys(c, rows),
                   wanted_ndim == 2 ? " x " : "", wanted_ndim == 2 ? kt_dim_keys(c, cols) : "");
}

static kt_status find(struct binder *b, const char *name, const struct kt_tensor **out)
{
    struct kt_model *m = b->model;
    *out = kt_checkpoint_find(m->checkpoint, name);
    if (*out)
        return KT_OK;
    return kt_fail(m->ctx, KT_ERROR_NOT_FOUND,
                   "%s: tensor %s is missing; config.json of a %s model with %d layers asks for it",
                   m->path, name, m->config.architecture->name, m->config.num_hidden_layers);
}

/* Marks a tensor and counts it, once. */
static void use(struct kt_model *m, const struct kt_tensor *t, enum kt_tensor_use use,
                uint64_t parameters)
{
    uint8_t *used = &m->used[t - m->checkpoint->tensors];
    if (*used)
        return;
    *used = (uint8_t)use;
    m->num_parameters += parameters;
    m->num_bytes += t->bytes;
}

/* Room among the vectors for n numbers; NULL in the first round. */
static float *take_floats(struct binder *b, int64_t n)
{
    float *place = b->store ? b->model->vectors + b->num_floats : NULL;
    b->num_floats += (n + VECTOR_ALIGN - 1) / VECTOR_ALIGN * VECTOR_ALIGN;
    return place;
}

static kt_status take_vector(struct binder *b, const char *name, enum kt_dim rows, float **place)
{
    struct kt_model *m = b->model;
    const struct kt_tensor *t;
    KT_TRY(find(b, name, &t));
    if (t->dtype != KT_DTYPE_BF16 && t->dtype != KT_DTYPE_F16 && t->dtype != KT_DTYPE_F32)
        return kt_fail(
            m->ctx, KT_ERROR_UNSUPPORTED,
            "%s: tensor %s has dtype %s; norms, biases and the like must be BF16, F16 or "
            "F32",
            t->file, t->name, t->dtype_name);
    KT_TRY(kt_tensor_check_aligned(m->ctx, t));
    KT_TRY(check_shape(m->ctx, &m->config, t, t->ndim, t->shape, rows, KT_DIM_NONE));
    use(m, t, KT_TENSOR_WEIGHT, (uint64_t)t->shape[0]);
    float *floats = take_floats(b, t->shape[0]);
    if (floats) {
        kt_dtype_to_f32(t->dtype, t->data, floats, (size_t)t->shape[0]);
        *place = floats;
    }
    return KT_OK;
}

/* Scales in float32 stay in the file; others are widened. */
static void take_scales(struct binder *b, const struct kt_tensor *scales, struct kt_weight *w)
{
    use(b->model, scales, KT_TENSOR_SCALES, 0);
    if (w->scale)
        return;
    int64_t n = scales->shape[0] * scales->shape[1];
    float *floats = take_floats(b, n);
    if (floats)
        kt_dtype_to_f32(scales->dtype, scales->data, floats, (size_t)n);
    w->scale = floats;
}

static kt_status take_matrix(struct binder *b, const char *name, const struct kt_binding *binding,
                             struct kt_weight *place)
{
    struct kt_model *m = b->model;
    const struct kt_tensor *t, *scales;
    struct kt_weight w;
    KT_TRY(find(b, name, &t));
    KT_TRY(kt_tensor_weight(m->ctx, m->checkpoint, &m->config.quantization, t, &w, &scales));
    const int64_t shape[2] = {w.rows, w.cols};
    KT_TRY(check_shape(m->ctx, &m->config, t, 2, shape, binding->rows, binding->cols));
    use(m, t, KT_TENSOR_WEIGHT, (uint64_t)w.rows * (uint64_t)w.cols);
    if (scales)
        take_scales(b, scales, &w);
    if (b->store)
        *place = w;
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
    m->num_vectors = (uint64_t)b->num_floats;
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
    b = (struct binder){.model = m, .store = true};
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
