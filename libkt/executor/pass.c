/* SPDX-License-Identifier: Apache-2.0 */
#include "backend/trace.h"
#include "core/context.h"
#include "executor/executor.h"
#include "formats/safetensors.h"

static void init_stage(struct kt_stage *stage, const struct kt_site *site, enum kt_pass_kind kind)
{
    *stage = (struct kt_stage){.site = site, .arena = kt_arena_measuring()};
    stage->run.device = site->device;
    stage->run.tally = kind == KT_PASS_MEASURE ? &stage->tally : NULL;
    kt_feed_place(&(struct kt_feed_sizes){0}, (void *)stage->arena.base, &stage->feed);
}

void kt_pass_init(struct kt_pass *pass, const struct kt_executor *ex, enum kt_pass_kind kind)
{
    *pass = (struct kt_pass){.ctx = ex->ctx,
                             .kind = kind,
                             .executor = ex,
                             .model = ex->model,
                             .lora = ex->lora,
                             .compute = ex->compute,
                             .pieces = 1,
                             .num_stages = ex->layout.num_devices};
    for (int32_t i = 0; i < pass->num_stages; i++)
        init_stage(&pass->stages[i], &ex->sites[i], kind);
    init_stage(&pass->host, &ex->host, kind);
    pass->stage = &pass->stages[ex->layout.device[0]];
}

void kt_pass_prefer(struct kt_pass *pass)
{
    for (int32_t i = 0; i < pass->num_stages; i++) {
        const struct kt_device *device = pass->stages[i].site->device;
        pass->stages[i].dtype = device->ops->prefers(device, pass->compute);
    }
}

void kt_pass_begin(struct kt_pass *pass, int32_t lowest, int64_t route_slots)
{
    const struct kt_model_config *config = &pass->model->config;
    for (int32_t i = 0; i < pass->num_stages; i++)
        pass->stages[i].x = kt_take_on(&pass->stages[i], pass->tokens, config->hidden_size);
    pass->stage = &pass->stages[pass->executor->layout.device[0]];
    pass->routes =
        (struct kt_routes){.stride = pass->tokens * config->router.topk, .lowest = lowest};
    if (!config->n_routed_experts)
        return;
    pass->routes.ids = kt_host_take(pass, route_slots, pass->routes.stride).data;
    pass->routes.weights = kt_host_take(pass, route_slots, pass->routes.stride).data;
}

kt_status kt_pass_embed(struct kt_pass *pass, const int32_t *ids, int64_t tokens, struct kt_view x)
{
    bool direct = kt_device_is_host(pass->stage->site->device);
    struct kt_embedding_args args = {.table = pass->model->embed_tokens,
                                     .tokens = tokens,
                                     .ids = ids,
                                     .x = direct ? x : kt_host_take(pass, tokens, x.ld)};
    if (!kt_pass_measures(pass)) {
        KT_TRY(kt_checkpoint_check(pass->model->checkpoint, args.table.data));
        KT_TRY(kt_supply_rows(pass->stage->site->supply, &args.table, ids, tokens));
    }
    kt_run_embedding(&pass->host.run, &args);
    if (!direct)
        kt_host_send(pass, x.data, args.x.data, tokens * x.ld);
    return KT_OK;
}

kt_status kt_pass_tick(const struct kt_pass *pass, const char *what, int64_t done)
{
    if (kt_pass_measures(pass))
        return KT_OK;
    if (pass->kind == KT_PASS_REPORTING)
        kt_progress(pass->ctx, what, (uint64_t)done,
                    (uint64_t)pass->model->config.num_hidden_layers);
    return kt_check_cancel(pass->ctx);
}

/** Brings the residual stream, or its gradient, to another stage through the host. */
static kt_status move(struct kt_pass *pass, struct kt_stage *to, enum kt_stream stream)
{
    int64_t hidden = pass->model->config.hidden_size;
    const struct kt_stage *from = pass->stage;
    uint64_t mark = pass->host.arena.used;
    struct kt_view x =
        kt_to_host(pass, stream == KT_STREAM_X ? from->x : from->dy, pass->tokens, hidden);
    KT_TRY(kt_host_wait(pass));
    pass->stage = to;
    kt_host_send(pass, stream == KT_STREAM_X ? to->x.data : to->dy.data, x.data,
                 pass->tokens * hidden);
    pass->host.arena.used = mark;
    return KT_OK;
}

/** Where tokens choose fewer experts than there are, most are not needed. */
static bool is_sparse(const struct kt_pass *pass)
{
    const struct kt_model_config *config = &pass->model->config;
    return pass->tokens * config->router.topk < config->n_routed_experts;
}

kt_status kt_pass_enter(struct kt_pass *pass, int32_t unit, int32_t then, enum kt_stream stream)
{
    const uint8_t *device = pass->executor->layout.device;
    struct kt_stage *stage = &pass->stages[device[unit]];
    if (pass->ctx->trace && !kt_pass_measures(pass))
        kt_trace_begin_layer(pass->ctx->trace, unit,
                             unit < pass->model->config.num_hidden_layers ? "layer" : "head");
    if (stage != pass->stage)
        KT_TRY(move(pass, stage, stream));
    if (then >= 0 && device[then] != device[unit])
        then = -1;
    pass->next_unit = then < pass->model->config.num_hidden_layers ? then : -1;
    return kt_supply_enter(stage->site->supply, &stage->run, unit, then,
                           (struct kt_pages_walk){pass->walk, is_sparse(pass)});
}

kt_status kt_pass_finish(struct kt_pass *pass)
{
    kt_status status = KT_OK;
    if (pass->ctx->trace && !kt_pass_measures(pass))
        kt_trace_begin_layer(pass->ctx->trace, -1, NULL);
    for (int32_t i = 0; !kt_pass_measures(pass) && i < pass->num_stages; i++) {
        kt_status of = kt_device_drain(pass->stages[i].site->device);
        status = status == KT_OK ? of : status;
    }
    return status;
}
