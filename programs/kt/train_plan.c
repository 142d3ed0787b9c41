/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "app.h"
#include "train.h"

static uint64_t divide_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b > 0);
}

/* A number of steps, or below 1 a share of all. */
static uint64_t interval(moment when, double steps, uint64_t total)
{
    if (when != MOMENT_STEPS)
        return 0;
    return (uint64_t)(steps < 1 ? ceil((double)total * steps) : steps);
}

int train_plan_make(train_plan *plan, const train_options *o, const config *cfg,
                    uint64_t num_examples)
{
    *plan = (train_plan){.num_examples = num_examples, .used_examples = num_examples};
    if (o->drop_last)
        plan->used_examples -= num_examples % o->batch;
    if (!plan->used_examples)
        return config_fail(cfg, o->drop_last ? "dataloader_drop_last" : "val_size",
                           "no example is left to train on");
    plan->step_examples = o->batch * o->accumulation;
    plan->epoch_batches = divide_up(plan->used_examples, o->batch);
    plan->epoch_steps = divide_up(plan->epoch_batches, o->accumulation);
    double steps = ceil(o->epochs * (double)plan->epoch_steps);
    if (o->max_steps < 0 && !(steps < 1e15))
        return config_fail(cfg, "num_train_epochs", "the run would have too many steps");
    plan->total_steps = o->max_steps > 0 ? (uint64_t)o->max_steps : (uint64_t)steps;
    plan->num_epochs = o->max_steps > 0 ? divide_up(plan->total_steps, plan->epoch_steps)
                                        : (uint64_t)ceil(o->epochs);
    plan->log_every = interval(o->logging, o->logging_steps, plan->total_steps);
    plan->save_every = interval(o->saving, o->save_steps, plan->total_steps);
    plan->eval_every = interval(o->evaluating, o->eval_steps, plan->total_steps);
    return APP_OK;
}

uint64_t train_plan_step(const train_plan *plan, uint64_t step, uint64_t *first)
{
    *first = step % plan->epoch_steps * plan->step_examples;
    uint64_t left = plan->used_examples - *first;
    return left < plan->step_examples ? left : plan->step_examples;
}

double train_plan_epoch(const train_plan *plan, const train_options *o, uint64_t step)
{
    if (!step)
        return 0;
    uint64_t epoch = (step - 1) / plan->epoch_steps;
    uint64_t batches = ((step - 1) % plan->epoch_steps + 1) * o->accumulation;
    if (batches > plan->epoch_batches)
        batches = plan->epoch_batches;
    return (double)epoch + (double)batches / (double)plan->epoch_batches;
}

uint64_t train_plan_warmup(const train_plan *plan, const train_options *o)
{
    return o->warmup_steps ? o->warmup_steps
                           : (uint64_t)ceil((double)plan->total_steps * o->warmup_ratio);
}
