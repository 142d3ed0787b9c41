/* SPDX-License-Identifier: Apache-2.0 */
#include "core/context.h"
#include "core/memory.h"
#include "executor/executor.h"
#include "placement/residency.h"

static kt_dtype input_dtype(const struct kt_executor *ex)
{
    return ex->compute == KT_COMPUTE_BF16 ? KT_DTYPE_BF16 : KT_DTYPE_F32;
}

uint64_t kt_inputs_size(const struct kt_executor *ex, int64_t tokens, int64_t layers)
{
    uint64_t element = (uint64_t)kt_view_element(input_dtype(ex)), size;
    uint64_t features = (uint64_t)ex->model->config.hidden_size;
    if (!kt_mul_u64((uint64_t)tokens * features, (uint64_t)layers * element, &size))
        return UINT64_MAX;
    return size;
}

int64_t kt_inputs_layers(const struct kt_executor *ex, const struct kt_step *step, int32_t device)
{
    int32_t layers = ex->model->config.num_hidden_layers;
    return kt_step_goes_back(step) ? kt_layout_layers(&ex->layout, device, step->lowest, layers)
                                   : 0;
}

int64_t kt_inputs_here(const struct kt_executor *ex, const struct kt_step *step, int32_t device,
                       int64_t tokens, uint64_t others)
{
    const struct kt_site *site = &ex->sites[device];
    int64_t layers = kt_inputs_layers(ex, step, device);
    uint64_t limit = site->device->limit;
    if (!limit)
        return layers;
    uint64_t least = kt_supply_fit(site->supply, 0, NULL);
    uint64_t room = others < limit && least < limit - others ? limit - others - least : 0;
    return kt_residency_inputs(layers, kt_inputs_size(ex, tokens, 1), room);
}

/** Steps within a reservation do with the memory that is there. */
static int64_t choose(struct kt_executor *ex, const struct kt_step *step, int32_t device,
                      int64_t tokens)
{
    struct kt_block *block = &ex->inputs[device];
    uint64_t each = kt_inputs_size(ex, tokens, 1);
    int64_t layers = kt_inputs_layers(ex, step, device);
    if (!ex->sites[device].device->limit)
        return layers;
    if (step->pass.tokens <= ex->reserved_tokens)
        return kt_residency_inputs(layers, each, block->size);
    uint64_t others = kt_room_others(ex, step, device);
    others += kt_room_experts(&ex->sites[device], others);
    int64_t here = kt_inputs_here(ex, step, device, tokens, others);
    uint64_t least = kt_supply_fit(ex->sites[device].supply, 0, NULL);
    if (kt_inputs_size(ex, tokens, here) < block->size &&
        others + least + block->size > ex->sites[device].device->limit)
        kt_block_free(ex->sites[device].device, block);
    return here;
}

kt_status kt_inputs_reserve(struct kt_executor *ex, struct kt_step *step, int32_t device,
                            int64_t tokens)
{
    struct kt_device *dev = ex->sites[device].device;
    int64_t layers = kt_inputs_layers(ex, step, device);
    int64_t here = choose(ex, step, device, tokens);
    step->inputs[device].pinned = layers - here;
    KT_TRY(kt_block_reserve(dev, &ex->inputs[device], kt_inputs_size(ex, tokens, here)));
    return kt_block_reserve(dev, &ex->pinned_inputs[device],
                            kt_inputs_size(ex, tokens, layers - here));
}

void kt_inputs_begin(struct kt_step *step)
{
    struct kt_pass *pass = &step->pass;
    int64_t hidden = pass->model->config.hidden_size;
    kt_dtype dtype = input_dtype(pass->executor);
    for (int32_t i = 0; i < pass->num_stages; i++) {
        struct kt_stage *stage = &pass->stages[i];
        step->inputs[i].copied = 0;
        step->inputs[i].fetched = -1;
        if (stage->site->device->limit && kt_step_goes_back(step))
            step->inputs[i].staging = (struct kt_view){
                kt_arena_take(&stage->arena, pass->tokens, hidden, kt_view_element(dtype)), hidden,
                dtype};
    }
}

static void convert(struct kt_pass *pass, int64_t tokens, struct kt_view x, struct kt_view y)
{
    struct kt_rows_args args = {
        .tokens = tokens, .dim = pass->model->config.hidden_size, .alpha = 1, .x = x, .y = y};
    if (x.dtype == y.dtype)
        kt_run_add(&pass->stage->run, &args);
    else
        kt_run_convert(&pass->stage->run, &args);
}

/** Where the input of a layer is. */
struct place {
    struct kt_step_inputs *inputs; /**< of the layer's device */
    bool pinned;
    struct kt_view view;
};

static struct place place_of(struct kt_step *step, int32_t layer, int64_t tokens)
{
    const struct kt_executor *ex = step->pass.executor;
    int32_t device = ex->layout.device[layer];
    int64_t index = kt_layout_layers(&ex->layout, device, step->lowest, layer);
    struct place place = {.inputs = &step->inputs[device]};
    place.pinned = index < place.inputs->pinned;
    const struct kt_block *block = place.pinned ? &ex->pinned_inputs[device] : &ex->inputs[device];
    place.view = (struct kt_view){
        .data = block->memory, .ld = ex->model->config.hidden_size, .dtype = input_dtype(ex)};
    if (kt_pass_measures(&step->pass))
        place.view.data = (void *)step->pass.stage->arena.base;
    place.view =
        kt_view_at(place.view, tokens * (place.pinned ? index : index - place.inputs->pinned), 0);
    return place;
}

/** x into a place, by way of the staging memory where that is the host's. */
static void keep(struct kt_pass *pass, const struct place *place, int64_t tokens, struct kt_view x)
{
    const struct kt_runner *run = &pass->stage->run;
    struct kt_step_inputs *inputs = place->inputs;
    struct kt_view kept = place->pinned ? inputs->staging : place->view;
    if (place->pinned)
        kt_run_wait(run, KT_QUEUE_COMPUTE, inputs->copied);
    convert(pass, tokens, x, kept);
    if (kept.dtype != x.dtype)
        convert(pass, tokens, kept, x);
    if (!place->pinned)
        return;
    kt_run_order(run, KT_QUEUE_OUT, KT_QUEUE_COMPUTE);
    kt_run_copy(run, KT_QUEUE_OUT, place->view.data, kept.data,
                kt_inputs_size(pass->executor, tokens, 1));
    inputs->copied = kt_run_mark(run, KT_QUEUE_OUT);
}

void kt_inputs_keep(struct kt_step *step, int32_t layer)
{
    struct kt_pass *pass = &step->pass;
    struct kt_view x = pass->stage->x;
    int64_t tokens = pass->tokens - pass->padding;
    uint64_t mark = kt_pass_mark(pass);
    if (kt_step_goes_back(step) && layer >= step->lowest) {
        struct place place = place_of(step, layer, tokens);
        keep(pass, &place, tokens, x);
    } else if (input_dtype(pass->executor) == KT_DTYPE_BF16) {
        struct kt_view rounded = kt_take_as(pass, KT_DTYPE_BF16, tokens, x.ld);
        convert(pass, tokens, x, rounded);
        convert(pass, tokens, rounded, x);
    }
    kt_pass_release(pass, mark);
}

/** Brings a pinned input to the staging memory, once nothing that is queued reads it. Forward
 * waited for all that it kept. */
static void fetch(struct kt_step *step, int32_t layer)
{
    struct kt_pass *pass = &step->pass;
    const struct kt_runner *run = &pass->stage->run;
    struct place place = place_of(step, layer, pass->tokens);
    if (!place.pinned || place.inputs->fetched == layer)
        return;
    kt_run_order(run, KT_QUEUE_IN, KT_QUEUE_COMPUTE);
    kt_run_copy(run, KT_QUEUE_IN, place.inputs->staging.data, place.view.data,
                kt_inputs_size(pass->executor, pass->tokens, 1));
    place.inputs->copied = kt_run_mark(run, KT_QUEUE_IN);
    place.inputs->fetched = layer;
}

/** The next layer down on the same device, while this one is computed. */
static void fetch_next(struct kt_step *step, int32_t layer)
{
    const uint8_t *device = step->pass.executor->layout.device;
    int32_t next = layer - 1;
    while (next >= step->lowest && device[next] != device[layer])
        next--;
    if (next >= step->lowest)
        fetch(step, next);
}

struct kt_view kt_inputs_get(struct kt_step *step, int32_t layer)
{
    struct kt_pass *pass = &step->pass;
    struct place place = place_of(step, layer, pass->tokens);
    struct kt_view x = pass->stage->x;
    if (place.pinned) {
        fetch(step, layer);
        kt_run_wait(&pass->stage->run, KT_QUEUE_COMPUTE, place.inputs->copied);
        convert(pass, pass->tokens, place.inputs->staging, x);
    } else if (place.view.dtype == KT_DTYPE_F32) {
        x = place.view;
    } else {
        convert(pass, pass->tokens, place.view, x);
    }
    fetch_next(step, layer);
    return x;
}
