/* SPDX-License-Identifier: Apache-2.0 */
/* A training configuration, and behind form feeds key=value arguments over it. */
#include <math.h>

#include "programs/kt/app.h"
#include "programs/kt/keys.h"
#include "programs/kt/train.h"
#include "told.h"

enum { MAX_ARGUMENTS = 16 };

static void look_at_values(const config *cfg)
{
    for (size_t i = 0; i < key_table_size; i++) {
        const char *name = key_table[i].name, *text;
        switch (key_table[i].type) {
        case KEY_INT:
            config_int(cfg, name);
            break;
        case KEY_FLOAT:
            fuzz_expect(isfinite(config_float(cfg, name)), "a number that is none");
            break;
        case KEY_BOOL:
            config_bool(cfg, name);
            break;
        case KEY_STRING:
        case KEY_LIST:
            text = config_string(cfg, name);
            fuzz_expect(!text || strlen(text) < SIZE_MAX, "a text that is none");
            break;
        default:
            break;
        }
    }
    key_print_ignored(cfg);
}

static void check_plan(const train_plan *plan, const train_options *o)
{
    uint64_t total = plan->total_steps, steps[] = {0, total / 2, total - 1}, first;
    fuzz_expect(total > 0, "a run without steps");
    for (int i = 0; i < 3; i++) {
        uint64_t num = train_plan_step(plan, steps[i], &first);
        fuzz_expect(num > 0 && num <= plan->step_examples && first < plan->used_examples &&
                        num <= plan->used_examples - first,
                    "a step of examples that are not there");
        fuzz_expect(isfinite(train_plan_epoch(plan, o, steps[i])), "a strange epoch");
    }
}

static void look_at_run(const config *cfg)
{
    train_options o = {0};
    train_plan plan;
    double rate = 0;
    if (fuzz_told(train_options_read(&o, cfg)))
        for (uint64_t num = 1; num < 100000; num *= 37)
            if (fuzz_told(train_plan_make(&plan, &o, cfg, num))) {
                check_plan(&plan, &o);
                o.schedule.total_steps = plan.total_steps;
                o.schedule.warmup_steps = train_plan_warmup(&plan, &o);
                if (fuzz_ok(
                        kt_schedule_rate(fuzz_context(), &o.schedule, plan.total_steps / 3, &rate)))
                    fuzz_expect(isfinite(rate), "a learning rate that is no number");
            }
    train_options_free(&o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *given[MAX_ARGUMENTS];
    int num = 0;
    size_t length;
    char *yaml = fuzz_text(&data, &size, &length);
    const char *file = fuzz_file("sft.yaml", yaml, length);
    while (size && num < MAX_ARGUMENTS)
        given[num++] = fuzz_text(&data, &size, &length);
    config cfg;
    if (fuzz_told(config_load(&cfg, file, given, num))) {
        look_at_values(&cfg);
        look_at_run(&cfg);
    }
    config_free(&cfg);
    while (num)
        free(given[--num]);
    free(yaml);
    return 0;
}
