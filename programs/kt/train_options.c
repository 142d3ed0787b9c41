/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "train.h"

static moment read_moment(const config *cfg, const char *key)
{
    const char *text = config_string(cfg, key);
    return !strcmp(text, "steps")   ? MOMENT_STEPS
           : !strcmp(text, "epoch") ? MOMENT_EPOCH
                                    : MOMENT_NEVER;
}

static int read_interval(const config *cfg, const char *key, double *out)
{
    *out = config_float(cfg, key);
    if (*out > 1e15 || (*out > 1 && *out != floor(*out)))
        return config_fail(cfg, key, "%g must be a whole number of steps, or a share below 1",
                           *out);
    return APP_OK;
}

static int read_intervals(train_options *o, const config *cfg)
{
    o->logging = read_moment(cfg, "logging_strategy");
    o->saving = read_moment(cfg, "save_strategy");
    o->evaluating = read_moment(cfg, "eval_strategy");
    o->logging_first_step = config_bool(cfg, "logging_first_step");
    o->eval_on_start = config_bool(cfg, "eval_on_start");
    o->eval_delay = config_float(cfg, "eval_delay");
    o->save_total_limit = (uint64_t)config_int(cfg, "save_total_limit");
    o->save_only_model = config_bool(cfg, "save_only_model");
    int rc = read_interval(cfg, "logging_steps", &o->logging_steps);
    if (rc == APP_OK)
        rc = read_interval(cfg, "save_steps", &o->save_steps);
    if (rc == APP_OK)
        rc = read_interval(cfg, config_find(cfg, "eval_steps") ? "eval_steps" : "logging_steps",
                           &o->eval_steps);
    return rc;
}

/* The arguments that a schedule has in transformers, and where they go. */
static double *scheduler_argument(kt_schedule *schedule, const char *name)
{
    const char *type = schedule->type;
    bool min_lr = !strcmp(type, "cosine_with_min_lr"), poly = !strcmp(type, "polynomial");
    bool cycles = min_lr || !strcmp(type, "cosine") || !strcmp(type, "cosine_with_restarts");
    if (cycles && !strcmp(name, "num_cycles"))
        return &schedule->num_cycles;
    if (poly && !strcmp(name, "power"))
        return &schedule->power;
    if ((poly && !strcmp(name, "lr_end")) || (min_lr && !strcmp(name, "min_lr")) ||
        (min_lr && !strcmp(name, "min_lr_rate")))
        return &schedule->lr_end;
    return NULL;
}

static int read_scheduler_kwargs(train_options *o, const config *cfg)
{
    const entry *e = config_find(cfg, "lr_scheduler_kwargs");
    bool has_minimum = false;
    for (size_t i = 0; e && i < e->value.num_items; i++) {
        const char *name = e->value.names[i], *text = e->value.items[i].text;
        double *target = scheduler_argument(&o->schedule, name);
        char *end = NULL;
        double x = text ? strtod(text, &end) : 0;
        if (!target)
            return config_fail(cfg, e->key, "the schedule %s has no argument %s", o->schedule.type,
                               name);
        if (!text || end == text || *end || !isfinite(x))
            return config_fail(cfg, e->key, "%s must be a number", name);
        *target = strcmp(name, "min_lr_rate") ? x : x * o->schedule.learning_rate;
        has_minimum |= target == &o->schedule.lr_end;
    }
    if (!strcmp(o->schedule.type, "cosine_with_min_lr") && !has_minimum)
        return config_fail(cfg, "lr_scheduler_type",
                           "cosine_with_min_lr needs min_lr or min_lr_rate in lr_scheduler_kwargs");
    return APP_OK;
}

static int read_optimizer(train_options *o, const config *cfg)
{
    kt_optimizer_options_init(&o->optimizer, sizeof o->optimizer);
    o->optimizer.beta1 = config_float(cfg, "adam_beta1");
    o->optimizer.beta2 = config_float(cfg, "adam_beta2");
    o->optimizer.epsilon = config_float(cfg, "adam_epsilon");
    o->optimizer.weight_decay = config_float(cfg, "weight_decay");
    o->optimizer.max_grad_norm = config_float(cfg, "max_grad_norm");
    kt_schedule_init(&o->schedule, sizeof o->schedule);
    o->schedule.type = config_string(cfg, "lr_scheduler_type");
    o->schedule.learning_rate = config_float(cfg, "learning_rate");
    o->warmup_steps = (uint64_t)config_int(cfg, "warmup_steps");
    o->warmup_ratio = config_float(cfg, "warmup_ratio");
    return read_scheduler_kwargs(o, cfg);
}

static int read_lora(train_options *o, const config *cfg)
{
    if (config_bool(cfg, "create_new_adapter") && config_find(cfg, "adapter_name_or_path"))
        return config_fail(cfg, "create_new_adapter",
                           "is not supported on top of adapter_name_or_path; merge that adapter "
                           "into the checkpoint first");
    if (config_int(cfg, "lora_rank") > 65536)
        return config_fail(cfg, "lora_rank", "is out of range; it must be at most 65536");
    kt_lora_options_init(&o->lora, sizeof o->lora);
    o->lora.rank = (int32_t)config_int(cfg, "lora_rank");
    o->lora.alpha = (float)config_float(cfg, "lora_alpha");
    o->lora.dropout = (float)config_float(cfg, "lora_dropout");
    o->lora.use_rslora = config_bool(cfg, "use_rslora");
    o->lora.target = config_string(cfg, "lora_target");
    o->lora.target_experts = config_bool(cfg, "kt_lora_experts");
    o->lora.seed = o->seed;
    return APP_OK;
}

static int read_data(train_options *o, const config *cfg)
{
    o->do_train = config_bool(cfg, "do_train");
    o->do_eval = config_bool(cfg, "do_eval") || o->evaluating != MOMENT_NEVER;
    double val_size = config_float(cfg, "val_size");
    bool eval_dataset = config_find(cfg, "eval_dataset") != NULL;
    if (o->do_eval && !eval_dataset && val_size < 1e-6)
        return config_fail(cfg, config_bool(cfg, "do_eval") ? "do_eval" : "eval_strategy",
                           "evaluation needs eval_dataset or val_size");
    if (eval_dataset && val_size > 1e-6)
        return config_fail(cfg, "val_size", "cannot be combined with eval_dataset");
    if (o->do_train && !config_find(cfg, "dataset"))
        return config_fail(cfg, "dataset",
                           "the key is missing; it names entries of "
                           "dataset_info.json");
    if (!o->do_train && !o->do_eval)
        return config_fail(cfg, "do_train", "there is nothing to do; set do_train or do_eval");
    if (config_int(cfg, "max_steps") == 0)
        return config_fail(cfg, "max_steps", "0 is out of range; it must be at least 1, or -1");
    return APP_OK;
}

static void read_counts(train_options *o, const config *cfg)
{
    const char *count = config_string(cfg, "include_num_input_tokens_seen");
    o->output_dir = config_string(cfg, "output_dir");
    o->overwrite = config_bool(cfg, "overwrite_output_dir");
    o->plot_loss = config_bool(cfg, "plot_loss");
    o->disable_shuffling = config_bool(cfg, "disable_shuffling");
    o->drop_last = config_bool(cfg, "dataloader_drop_last");
    o->count_tokens = strcmp(count, "no") && strcmp(count, "false");
    o->tokens_per_second = config_bool(cfg, "include_tokens_per_second");
    o->effective_tokens = config_bool(cfg, "include_effective_tokens_per_second");
    o->quiet = config_bool(cfg, "disable_tqdm");
    o->batch = (uint64_t)config_int(cfg, "per_device_train_batch_size");
    o->eval_batch = (uint64_t)config_int(cfg, "per_device_eval_batch_size");
    o->accumulation = (uint64_t)config_int(cfg, "gradient_accumulation_steps");
    o->epochs = config_float(cfg, "num_train_epochs");
    o->max_steps = config_int(cfg, "max_steps");
    o->seed = (uint64_t)config_int(cfg, "seed");
    o->data_seed = config_find(cfg, "data_seed") ? (uint64_t)config_int(cfg, "data_seed") : o->seed;
    o->compute = config_bool(cfg, "bf16") ? KT_COMPUTE_BF16 : KT_COMPUTE_F32;
}

static int check_counts(const train_options *o, const config *cfg)
{
    const struct {
        const char *key;
        uint64_t count;
    } counts[] = {{"per_device_train_batch_size", o->batch},
                  {"per_device_eval_batch_size", o->eval_batch},
                  {"gradient_accumulation_steps", o->accumulation}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i].count > UINT32_MAX)
            return config_fail(cfg, counts[i].key, "%llu is too many; it must be at most %u",
                               (unsigned long long)counts[i].count, UINT32_MAX);
    return APP_OK;
}

int train_options_read(train_options *o, const config *cfg)
{
    read_counts(o, cfg);
    int rc = check_counts(o, cfg);
    if (rc == APP_OK)
        rc = read_intervals(o, cfg);
    if (rc == APP_OK)
        rc = read_optimizer(o, cfg);
    if (rc == APP_OK)
        rc = read_lora(o, cfg);
    if (rc == APP_OK)
        rc = read_data(o, cfg);
    return rc;
}

void train_options_free(train_options *o)
{
    free(o->resume);
    o->resume = NULL;
}
