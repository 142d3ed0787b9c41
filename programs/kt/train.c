/* SPDX-License-Identifier: Apache-2.0 */
/* kt train: the loop. One optimizer step is one packed batch of per_device_train_batch_size x
 * gradient_accumulation_steps sequences. */
#include "train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "args.h"
#include "keys.h"
#include "lost.h"
#include "output.h"
#include "stop.h"

static int step_is_dropped(void)
{
    return stop_requests() > 1;
}

static int library_failed(train_run *run)
{
    return app_fail("%s", kt_last_error(run->session.ctx));
}

/* The tokenizer's ids must be rows of the model's embedding. */
static int check_ids(const train_run *run, const kt_dataset *dataset)
{
    kt_model_info info = {.size = sizeof info};
    kt_model_get_info(run->session.model, &info);
    for (size_t i = 0; dataset && i < kt_dataset_num_examples(dataset); i++) {
        kt_example e = {.size = sizeof e};
        kt_dataset_get(dataset, i, &e);
        for (size_t k = 0; k < e.length; k++)
            if (e.input_ids[k] >= info.vocab_size)
                return config_fail(run->cfg, "model_name_or_path",
                                   "%s: the tokenizer gives id %d, but the model has %d; they "
                                   "belong to different models",
                                   info.path, e.input_ids[k], info.vocab_size);
    }
    return APP_OK;
}

static int load_data(train_run *run)
{
    session *s = &run->session;
    double val_size = config_float(run->cfg, "val_size");
    int rc = APP_OK;
    if (config_find(run->cfg, "dataset"))
        rc = session_load_dataset(s, "dataset", &run->dataset);
    if (rc == APP_OK && config_find(run->cfg, "eval_dataset"))
        rc = session_load_dataset(s, "eval_dataset", &run->evaluation);
    else if (rc == APP_OK && val_size > 1e-6)
        rc = session_told(
            s, "val_size",
            kt_dataset_split(run->dataset, val_size, run->options.seed, &run->evaluation));
    if (rc == APP_OK)
        rc = check_ids(run, run->dataset);
    if (rc == APP_OK)
        rc = check_ids(run, run->evaluation);
    run->plan.step_examples = run->options.eval_batch;
    if (rc == APP_OK && run->options.do_train)
        rc = train_plan_make(&run->plan, &run->options, run->cfg,
                             kt_dataset_num_examples(run->dataset));
    return rc;
}

static int create_adapter(session *s, const kt_lora_options *options)
{
    kt_status status = kt_lora_create(s->model, options, &s->lora);
    return session_told(s, status == KT_ERROR_NOT_FOUND ? "lora_target" : "lora_rank", status);
}

static int load_adapter(train_run *run)
{
    session *s = &run->session;
    const train_options *o = &run->options;
    int rc;
    if (o->resume)
        rc = session_told(s, "resume_from_checkpoint", kt_lora_load(s->model, o->resume, &s->lora));
    else if (config_find(run->cfg, "adapter_name_or_path"))
        rc = session_load_adapter(s);
    else
        rc = create_adapter(s, &o->lora);
    if (rc == APP_OK)
        kt_lora_set_seed(s->lora, o->seed);
    return rc;
}

static int prepare(train_run *run)
{
    session *s = &run->session;
    train_options *o = &run->options;
    int rc = output_prepare(o, run->cfg);
    if (rc == APP_OK && config_find(run->cfg, "kt_optimize_rule"))
        rc = session_check_path(run->cfg, "kt_optimize_rule");
    if (rc == APP_OK)
        rc = session_open(s, run->cfg);
    if (rc == APP_OK)
        rc = session_check_template(s);
    if (rc == APP_OK)
        rc = session_load_tokenizer(s);
    if (rc == APP_OK)
        rc = session_load_model(s);
    if (rc == APP_OK)
        rc = load_data(run);
    if (rc == APP_OK)
        rc = load_adapter(run);
    if (rc == APP_OK)
        rc = session_create_executor(s, o->compute);
    if (rc == APP_OK)
        rc = session_told(s, "lora_rank",
                          kt_optimizer_create(s->lora, &o->optimizer, &run->optimizer));
    if (rc == APP_OK)
        rc = session_told(s, "per_device_train_batch_size", kt_batch_create(s->ctx, &run->batch));
    return rc;
}

static int order_epoch(train_run *run, uint64_t epoch)
{
    uint64_t n = run->plan.num_examples;
    if (run->order_epoch == (int64_t)epoch)
        return APP_OK;
    if (!run->order)
        run->order = app_alloc(n, sizeof *run->order);
    run->order_epoch = (int64_t)epoch;
    if (run->options.disable_shuffling) {
        for (uint64_t i = 0; i < n; i++)
            run->order[i] = (int64_t)i;
        return APP_OK;
    }
    kt_status status =
        kt_random_permutation(run->session.ctx, run->options.data_seed + epoch, n, run->order);
    return status == KT_OK ? APP_OK : library_failed(run);
}

static size_t padded_width(const train_run *run, const kt_dataset *data, const int64_t *indices,
                           uint64_t num)
{
    size_t width = 0, multiple = run->options.do_train ? 8 : 1;
    for (uint64_t i = 0; i < num; i++) {
        kt_example e = {.size = sizeof e};
        if (kt_dataset_get(data, (size_t)indices[i], &e) == KT_OK && e.length > width)
            width = e.length;
    }
    return (width + multiple - 1) / multiple * multiple;
}

kt_status train_add_micro_batch(train_run *run, const kt_dataset *data, const int64_t *indices,
                                uint64_t num, size_t *width)
{
    kt_tokenizer *tokenizer = run->session.tokenizer;
    int32_t pad = kt_tokenizer_pad_id(tokenizer);
    kt_status status = KT_OK;
    if (pad < 0)
        pad = kt_tokenizer_eos_id(tokenizer);
    *width = padded_width(run, data, indices, num);
    for (uint64_t i = 0; i < num && status == KT_OK; i++) {
        kt_example e = {.size = sizeof e};
        status = kt_dataset_get(data, (size_t)indices[i], &e);
        if (status == KT_OK)
            status = kt_batch_add(run->batch, e.input_ids, e.labels, e.length);
        if (status == KT_OK && pad >= 0 && *width > e.length)
            status = kt_batch_add_padding(run->batch, pad, *width - e.length);
    }
    return status;
}

static int add_micro_batch(train_run *run, const int64_t *indices, uint64_t num)
{
    size_t width;
    kt_status status = train_add_micro_batch(run, run->dataset, indices, num, &width);
    run->state.padded_tokens += width * num;
    return session_told(&run->session, "per_device_train_batch_size", status);
}

static int fill_batch(train_run *run)
{
    uint64_t first, step = run->state.step, size = run->options.batch;
    int rc = order_epoch(run, step / run->plan.epoch_steps);
    uint64_t num = train_plan_step(&run->plan, step, &first);
    kt_batch_clear(run->batch);
    for (uint64_t i = 0; i < num && rc == APP_OK; i += size)
        rc = add_micro_batch(run, run->order + first + i, num - i < size ? num - i : size);
    run->state.tokens += kt_batch_num_tokens(run->batch);
    return rc;
}

static int take_step(train_run *run, double *loss)
{
    session *s = &run->session;
    train_state *state = &run->state, before = *state;
    kt_loss result = {.size = sizeof result};
    int rc = fill_batch(run);
    if (rc != APP_OK)
        return rc;
    kt_executor_set_step(s->executor, state->step);
    kt_status status =
        kt_schedule_rate(s->ctx, &run->options.schedule, state->step, &run->learning_rate);
    if (status == KT_OK)
        status = kt_executor_forward(s->executor, run->batch, KT_FORWARD_TRAIN, &result);
    if (status == KT_OK)
        status = kt_executor_backward(s->executor, NULL);
    if (status == KT_OK)
        status = kt_optimizer_step(run->optimizer, run->learning_rate, &run->grad_norm);
    if (status == KT_ERROR_CANCELLED) {
        *state = before;
        return APP_INTERRUPTED;
    }
    if (status == KT_ERROR_OUT_OF_MEMORY)
        return session_told(s, "per_device_train_batch_size", status);
    if (status != KT_OK)
        return app_fail("step %llu: %s", (unsigned long long)state->step + 1,
                        kt_last_error(s->ctx));
    *loss = result.loss;
    state->loss_total += result.loss;
    state->loss_window += result.loss;
    state->step++;
    return APP_OK;
}

static int log_loss(train_run *run)
{
    train_state *state = &run->state;
    double steps = (double)(state->step - state->last_logged);
    json_t *item = json_pack("{sfsf}", "loss", round(state->loss_window / steps * 1e6) / 1e6,
                             "learning_rate", run->learning_rate);
    if (run->options.optimizer.max_grad_norm > 0)
        json_object_set_new(item, "grad_norm", json_real(run->grad_norm));
    state->loss_window = 0;
    state->last_logged = state->step;
    return output_log(run, item);
}

static int evaluate_and_log(train_run *run)
{
    json_t *metrics;
    int rc = train_evaluate(run, &metrics);
    if (rc == APP_OK)
        run->state.unevaluated = false;
    return rc == APP_OK ? output_log(run, metrics) : rc;
}

static bool due(uint64_t every, uint64_t step)
{
    return every && step % every == 0;
}

/* What transformers' callbacks do after a step: log, evaluate, save, in this order. */
static int after_step(train_run *run)
{
    const train_options *o = &run->options;
    const train_plan *plan = &run->plan;
    uint64_t step = run->state.step;
    bool last = step == plan->total_steps, epoch_end = last || step % plan->epoch_steps == 0;
    double epoch = train_plan_epoch(plan, o, step);
    bool log = due(plan->log_every, step) || (o->logging_first_step && step == 1) ||
               (o->logging == MOMENT_EPOCH && epoch_end);
    bool evaluate = (due(plan->eval_every, step) && o->eval_delay <= (double)step) ||
                    (o->evaluating == MOMENT_EPOCH && epoch_end && o->eval_delay <= epoch);
    bool save = due(plan->save_every, step) || (last && o->saving == MOMENT_STEPS) ||
                (o->saving == MOMENT_EPOCH && epoch_end);
    run->state.unevaluated = evaluate;
    int rc = log ? log_loss(run) : APP_OK;
    if (rc == APP_OK && evaluate)
        rc = evaluate_and_log(run);
    if (rc == APP_OK && save)
        rc = output_checkpoint(run, !o->save_only_model);
    return rc;
}

/* Says what a first Ctrl-C will be answered with. */
static void announce_stop(const train_run *run)
{
    char time[FORMAT_SIZE], text[100];
    double steps = (double)(run->state.step - run->start_step);
    double each = steps > 0 ? (now_seconds() - run->start_time) / steps : 0;
    snprintf(text, sizeof text, "stopping after this step%s%s%s; Ctrl-C again to drop it",
             each >= 1 ? " (steps take about " : "", each >= 1 ? format_time(time, each) : "",
             each >= 1 ? ")" : "");
    stop_announce(text);
}

static int loop(train_run *run)
{
    int rc = APP_OK;
    if (run->state.unevaluated ||
        (run->options.eval_on_start && run->evaluation && !run->options.resume))
        rc = evaluate_and_log(run);
    while (rc == APP_OK && run->state.step < run->plan.total_steps) {
        double loss = 0;
        rc = take_step(run, &loss);
        if (rc == APP_OK) {
            progress_step(loss);
            rc = after_step(run);
            announce_stop(run);
        }
        if (rc == APP_OK && stop_requests() && run->state.step < run->plan.total_steps)
            rc = APP_INTERRUPTED;
    }
    return rc;
}

static int train(train_run *run)
{
    int rc = output_begin(run);
    if (rc != APP_OK)
        return rc;
    if (run->options.resume)
        out_print("resuming after step %llu from %s\n", (unsigned long long)run->state.step,
                  run->options.resume);
    stop_catch("stopping after this step; Ctrl-C again to drop it",
               "dropping this step; the one before it is kept");
    train_advise(run);
    run->start_time = now_seconds();
    run->start_step = run->state.step;
    progress_begin(run);
    session_cancelled = step_is_dropped;
    rc = loop(run);
    session_cancelled = NULL;
    if (rc == APP_INTERRUPTED)
        rc = train_stop(run);
    if (rc == APP_OK)
        rc = train_finish(run);
    if (rc == APP_ERROR)
        train_say_resume(run);
    progress_end();
    return rc;
}

static int execute(train_run *run)
{
    int rc = prepare(run);
    if (rc == APP_OK) {
        key_print_ignored(run->cfg);
        rc = train_report(run);
    }
    run->options.schedule.total_steps = run->plan.total_steps;
    run->options.schedule.warmup_steps = train_plan_warmup(&run->plan, &run->options);
    if (rc == APP_OK && run->options.resume)
        rc = output_load_checkpoint(run);
    if (rc == APP_OK)
        rc = output_make_folder(run);
    if (rc == APP_OK)
        rc = profile_begin(&run->profile, run->session.ctx);
    if (rc == APP_OK && run->options.do_train)
        rc = train(run);
    if (rc == APP_OK && run->options.do_eval)
        rc = train_final_evaluation(run);
    return profile_end(&run->profile, run->session.ctx, rc, out_print);
}

static void free_run(train_run *run)
{
    lost_advise(NULL);
    json_decref(run->state.history);
    free(run->advice);
    free(run->order);
    free(run->saved);
    kt_batch_free(run->batch);
    kt_optimizer_free(run->optimizer);
    kt_dataset_free(run->evaluation);
    kt_dataset_free(run->dataset);
    session_close(&run->session);
    train_options_free(&run->options);
}

int train_command(int argc, char **argv)
{
    bool check = false;
    config cfg;
    train_run run = {.cfg = &cfg, .order_epoch = -1};
    const arg_option options[] = {
        {.name = "--check", .flag = &check}, ARG_EXPERTS, ARG_PROFILE(&run.profile), {0}};
    arguments args;
    int rc = arguments_parse(&args, "train", argc, argv, options);
    if (rc != APP_OK)
        return rc;
    run.options.yaml = args.path;
    run.options.overrides = args.overrides;
    run.options.num_overrides = args.num_overrides;
    run.state.history = json_array();
    rc = config_load(&cfg, args.path, args.overrides, args.num_overrides);
    if (rc == APP_OK)
        rc = train_options_read(&run.options, &cfg);
    if (rc == APP_OK && check)
        out_print("%s: every key is known and possible\n", args.path);
    if (rc == APP_OK && check)
        key_print_ignored(&cfg);
    if (rc == APP_OK && !check)
        rc = execute(&run);
    free_run(&run);
    config_free(&cfg);
    return rc;
}
