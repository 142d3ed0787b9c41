/* SPDX-License-Identifier: Apache-2.0 */
/* What kt train prints before the first step, and whether the steps will fit into memory. */
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "output.h"
#include "train.h"

static int longest_first(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The most tokens that so many examples can have, whatever the order, and the longest sequence. */
static void largest_step(const kt_dataset *dataset, uint64_t examples, size_t *tokens,
                         size_t *longest)
{
    size_t num = kt_dataset_num_examples(dataset);
    size_t *lengths = app_alloc(num, sizeof *lengths);
    for (size_t i = 0; i < num; i++) {
        kt_example e = {.size = sizeof e};
        if (kt_dataset_get(dataset, i, &e) == KT_OK)
            lengths[i] = e.length;
    }
    qsort(lengths, num, sizeof *lengths, longest_first);
    *tokens = 0;
    *longest = num ? lengths[0] : 0;
    for (size_t i = 0; i < num && i < examples; i++)
        *tokens += lengths[i];
    free(lengths);
}

/* Is there room for `more` bytes beside what is allocated already? */
static int check_memory(const train_run *run, const char *key, const char *what, const char *remedy,
                        uint64_t more)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE];
    uint64_t limit = run->session.memory_limit;
    uint64_t needed = more + kt_context_memory_used(run->session.ctx);
    uint64_t host = kt_context_host_memory(run->session.ctx);
    if (limit && needed > limit)
        return config_fail(run->cfg, "memory_limit",
                           "%s needs %s, the limit is %s; raise it or lower %s", what,
                           format_bytes(a, needed), format_bytes(b, limit), remedy);
    if (needed > host)
        return config_fail(run->cfg, key, "%s needs %s, this process may use %s; lower %s", what,
                           format_bytes(a, needed), format_bytes(b, host), remedy);
    return APP_OK;
}

/* What a step allocates beside layer inputs. */
static uint64_t workspace(const kt_device_plan *plan)
{
    return plan->activations + plan->scratch + plan->feed;
}

/* Of another device than the host. */
static void report_device(const kt_device_plan *plan)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE], d[FORMAT_SIZE];
    out_print("%-8s layer inputs %s, workspace %s, weights %s at a time: %s\n", plan->name,
              format_bytes(a, plan->layer_inputs), format_bytes(b, workspace(plan)),
              format_bytes(c, plan->supplied), format_bytes(d, plan->total_allocated));
}

/* Devices of the host, "cpu" and "cpu:N", have its memory. */
static bool is_host(const kt_device_plan *plan)
{
    return strcmp(plan->name, "cpu") == 0 || strncmp(plan->name, "cpu:", 4) == 0;
}

static void add(const kt_device_plan *plan, kt_device_plan *sum)
{
    sum->adapter += plan->adapter;
    sum->layer_inputs += plan->layer_inputs;
    sum->activations += plan->activations;
    sum->scratch += plan->scratch;
    sum->feed += plan->feed;
    sum->total_allocated += plan->total_allocated;
}

/* What a step takes of the host's memory, and all weights; other devices have a line of their own
 * in a report of training. */
static int plan_step(const train_run *run, size_t tokens, size_t longest, int32_t mode,
                     kt_device_plan *host)
{
    kt_plan_options options;
    kt_plan *plan;
    kt_device_plan device = {.size = sizeof device};
    kt_plan_options_init(&options, sizeof options);
    options.num_tokens = tokens;
    options.max_sequence = longest;
    options.mode = mode;
    *host = (kt_device_plan){.size = sizeof *host};
    if (kt_plan_create(run->session.executor, &options, &plan) != KT_OK)
        return app_fail("%s", kt_last_error(run->session.ctx));
    for (size_t i = 0; i < kt_plan_num_devices(plan); i++) {
        kt_plan_get_device(plan, i, &device);
        if (is_host(&device))
            add(&device, host);
        else if (mode == KT_FORWARD_TRAIN)
            report_device(&device);
    }
    kt_plan_get_total(plan, &device);
    host->weights = device.weights;
    kt_plan_free(plan);
    return APP_OK;
}

static int check_evaluation_memory(const train_run *run)
{
    kt_device_plan plan;
    size_t tokens, longest;
    largest_step(run->evaluation, train_evaluation_group(run), &tokens, &longest);
    if (plan_step(run, tokens, longest, KT_FORWARD_EVAL, &plan) != APP_OK)
        return APP_ERROR;
    return check_memory(run, "per_device_eval_batch_size", "an evaluation",
                        "per_device_eval_batch_size or cutoff_len", workspace(&plan));
}

static int report_memory(train_run *run)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE], d[FORMAT_SIZE], e[FORMAT_SIZE];
    kt_device_plan plan;
    size_t tokens, longest;
    largest_step(run->dataset ? run->dataset : run->evaluation, run->plan.step_examples, &tokens,
                 &longest);
    if (plan_step(run, tokens, longest, KT_FORWARD_TRAIN, &plan) != APP_OK)
        return APP_ERROR;
    out_print(
        "memory   weights %s mapped; adapter %s, layer inputs %s, workspace %s: %s for a step of "
        "up to %zu tokens\n",
        format_bytes(a, plan.weights), format_bytes(b, plan.adapter),
        format_bytes(c, plan.layer_inputs), format_bytes(d, workspace(&plan)),
        format_bytes(e, plan.total_allocated), tokens);
    int rc = check_memory(run, "per_device_train_batch_size", "a step",
                          "per_device_train_batch_size, gradient_accumulation_steps or cutoff_len",
                          plan.layer_inputs + workspace(&plan));
    if (rc == APP_OK && run->evaluation)
        rc = check_evaluation_memory(run);
    if (rc == APP_OK && run->dataset && kt_executor_reserve(run->session.executor, tokens) != KT_OK)
        return app_fail("%s", kt_last_error(run->session.ctx));
    return rc;
}

static void report_data(const train_run *run)
{
    if (run->dataset)
        out_print("data     %zu examples", kt_dataset_num_examples(run->dataset));
    else
        out_print("data    ");
    if (run->evaluation)
        out_print("%s %zu to evaluate on", run->dataset ? "," : "",
                  kt_dataset_num_examples(run->evaluation));
    out_print("\n");
    const train_plan *plan = &run->plan;
    if (run->dataset)
        out_print("steps    %llu: %llu for each epoch, of %llu sequences each\n",
                  (unsigned long long)plan->total_steps, (unsigned long long)plan->epoch_steps,
                  (unsigned long long)plan->step_examples);
}

int train_report(train_run *run)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE];
    kt_model_info info = {.size = sizeof info};
    if (kt_model_get_info(run->session.model, &info) != KT_OK)
        return app_fail("%s", kt_last_error(run->session.ctx));
    uint64_t trained = run->session.lora ? kt_lora_num_parameters(run->session.lora) : 0;
    uint64_t all = info.num_parameters + trained;
    run->flops_per_token =
        6.0 * (double)(all - (uint64_t)info.vocab_size * (uint64_t)info.hidden_size);
    out_print("device   %s\n", kt_context_cpu_description(run->session.ctx));
    out_print("model    %s, %s parameters, %s active, %s; arithmetic in %s\n", info.architecture,
              format_count(a, info.num_parameters), format_count(b, info.num_active_parameters),
              format_bytes(c, info.num_bytes),
              run->options.compute == KT_COMPUTE_BF16 ? "bfloat16" : "float32");
    char *experts = session_experts(&run->session);
    if (experts)
        out_print("experts  %s\n", experts);
    free(experts);
    report_data(run);
    int rc = report_memory(run);
    if (rc == APP_OK)
        out_print("trainable params: %s || all params: %s || trainable%%: %.4f\n",
                  format_grouped(a, trained), format_grouped(b, all),
                  100.0 * (double)trained / (double)all);
    out_flush();
    return rc;
}
