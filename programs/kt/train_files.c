/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a run but for the checkpoints: logs, results, the model card. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "files.h"
#include "json_text.h"
#include "train.h"

static int write_failed(train_run *run, const char *path)
{
    return config_fail(run->cfg, "output_dir", "cannot write %s: %m", path);
}

/* Takes `text`. */
static int write_text(train_run *run, const char *folder, const char *name, char *text)
{
    char *path = app_text("%s/%s", folder, name);
    int rc = file_write(path, text, strlen(text)) ? write_failed(run, path) : APP_OK;
    free(path);
    free(text);
    return rc;
}

/* The log's lines of losses whose step is not beyond `step`. What a kill or a full disk cut off is
 * no line; one that lacks only its end gets it. */
static char *lines_until(const char *text, size_t size, uint64_t step)
{
    char *kept = app_alloc(size + 2, 1);
    size_t length = 0;
    for (const char *end = text + size, *next; text < end; text = next) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t line = (size_t)((newline ? newline : end) - text);
        next = text + line + (newline != NULL);
        json_error_t error;
        json_t *item = json_read(text, line, &error);
        json_int_t at = json_integer_value(json_object_get(item, "current_steps"));
        bool loss = json_object_get(item, "loss") || json_object_get(item, "eval_loss");
        if (loss && (uint64_t)at <= step) {
            memcpy(kept + length, text, line);
            length += line;
            kept[length++] = '\n';
        }
        json_decref(item);
    }
    return kept;
}

int output_begin(train_run *run)
{
    const train_options *o = &run->options;
    char *path = app_text("%s/trainer_log.jsonl", o->output_dir);
    int rc = APP_OK;
    size_t size;
    char *old = o->resume && file_exists(path) ? file_read(path, &size) : NULL;
    if (old)
        rc = write_text(run, o->output_dir, "trainer_log.jsonl",
                        lines_until(old, size, run->state.step));
    else if (o->resume && file_exists(path))
        rc = config_fail(run->cfg, "output_dir", "cannot read %s: %m", path);
    else if (unlink(path) && errno != ENOENT)
        rc = write_failed(run, path);
    free(old);
    free(path);
    return rc;
}

static void copy_member(json_t *to, const char *name, const json_t *from, const char *source)
{
    json_t *member = json_object_get(from, source);
    if (member)
        json_object_set(to, name, member);
}

static void set_time(json_t *line, const char *name, double seconds)
{
    char text[FORMAT_SIZE];
    json_object_set_new(line, name, json_string(format_time(text, seconds)));
}

static json_t *log_line(const train_run *run, const json_t *item)
{
    uint64_t step = run->state.step, total = run->plan.total_steps;
    uint64_t done = step - run->start_step;
    double elapsed = now_seconds() - run->start_time;
    double left = done ? elapsed / (double)done * (double)(total - step) : 0;
    json_t *line = json_object();
    json_object_set_new(line, "current_steps", json_integer((json_int_t)step));
    json_object_set_new(line, "total_steps", json_integer((json_int_t)total));
    copy_member(line, "loss", item, "loss");
    copy_member(line, "eval_loss", item, "eval_loss");
    copy_member(line, "lr", item, "learning_rate");
    copy_member(line, "epoch", item, "epoch");
    json_object_set_new(line, "percentage",
                        json_real(round(1e4 * (double)step / (double)total) / 100));
    set_time(line, "elapsed_time", elapsed);
    set_time(line, "remaining_time", left);
    if (run->options.count_tokens) {
        double speed = elapsed > 0 ? (double)run->state.tokens / elapsed : 0;
        json_object_set_new(line, "throughput", json_real(round(speed * 100) / 100));
        json_object_set_new(line, "total_tokens", json_integer((json_int_t)run->state.tokens));
    }
    return line;
}

int output_log(train_run *run, json_t *item)
{
    if (run->options.count_tokens)
        json_object_set_new(item, "num_input_tokens_seen",
                            json_integer((json_int_t)run->state.tokens));
    json_object_set_new(item, "epoch",
                        json_real(train_plan_epoch(&run->plan, &run->options, run->state.step)));
    json_object_set_new(item, "step", json_integer((json_int_t)run->state.step));
    json_array_append(run->state.history, item);
    progress_log(run, item);
    json_t *line = log_line(run, item);
    char *text = json_text(line, 0), *ended = app_text("%s\n", text);
    char *path = app_text("%s/trainer_log.jsonl", run->options.output_dir);
    int rc = file_append(path, ended, strlen(ended)) ? write_failed(run, path) : APP_OK;
    free(path);
    free(ended);
    free(text);
    json_decref(line);
    json_decref(item);
    return rc;
}

static json_t *trainer_state(const train_run *run)
{
    const train_plan *plan = &run->plan;
    const train_state *state = &run->state;
    double epoch = train_plan_epoch(plan, &run->options, state->step);
    json_t *control = json_pack(
        "{s{sbsbsbsbsb}s{}}", "args", "should_epoch_stop", 0, "should_evaluate", 0, "should_log", 0,
        "should_save", 1, "should_training_stop", state->step >= plan->total_steps, "attributes");
    return json_pack(
        "{snsnsnsfsIsIsbsbsbsOsIsIsIsIsIs{so}sfsIsnsn}", "best_global_step", "best_metric",
        "best_model_checkpoint", "epoch", epoch, "eval_steps",
        (json_int_t)(plan->eval_every ? plan->eval_every : 500), "global_step",
        (json_int_t)state->step, "is_hyper_param_search", 0, "is_local_process_zero", 1,
        "is_world_process_zero", 1, "log_history", state->history, "logging_steps",
        (json_int_t)plan->log_every, "max_steps", (json_int_t)plan->total_steps,
        "num_input_tokens_seen", (json_int_t)(run->options.count_tokens ? state->tokens : 0),
        "num_train_epochs", (json_int_t)plan->num_epochs, "save_steps",
        (json_int_t)plan->save_every, "stateful_callbacks", "TrainerControl", control, "total_flos",
        (double)state->padded_tokens * run->flops_per_token, "train_batch_size",
        (json_int_t)run->options.batch, "trial_name", "trial_params");
}

int output_save_state(train_run *run, const char *folder)
{
    json_t *state = trainer_state(run);
    if (!state)
        return app_fail("out of memory");
    char *text = json_text(state, JSON_INDENT(2) | JSON_SORT_KEYS), *ended = app_text("%s\n", text);
    free(text);
    json_decref(state);
    return write_text(run, folder, "trainer_state.json", ended);
}

int output_save_results(train_run *run, const char *split, json_t *metrics)
{
    const char *folder = run->options.output_dir;
    size_t flags = JSON_INDENT(4) | JSON_SORT_KEYS;
    char *name = app_text("%s_results.json", split);
    int rc = write_text(run, folder, name, json_text(metrics, flags));
    free(name);
    if (rc != APP_OK)
        return rc;
    char *path = app_text("%s/all_results.json", folder);
    size_t size;
    char *old = file_exists(path) ? file_read(path, &size) : app_copy("");
    if (!old)
        rc = config_fail(run->cfg, "output_dir", "cannot read %s: %m", path);
    json_error_t error;
    json_t *all = old && *old ? json_read(old, strlen(old), &error) : NULL;
    free(old);
    free(path);
    if (rc != APP_OK)
        return rc;
    if (!json_is_object(all)) {
        json_decref(all);
        all = json_object();
    }
    json_object_update(all, metrics);
    rc = write_text(run, folder, "all_results.json", json_text(all, flags));
    json_decref(all);
    return rc;
}

int output_model_card(train_run *run)
{
    const train_options *o = &run->options;
    const char *model = config_string(run->cfg, "model_name_or_path");
    const char *name = strrchr(o->output_dir, '/');
    char *text = app_text(
        "---\nbase_model: %s\nlibrary_name: peft\nlicense: other\npipeline_tag: text-generation\n"
        "tags:\n- lora\n- libkt\n---\n\n# %s\n\nA LoRA adapter for `%s`, trained with libkt on the "
        "dataset `%s`.\n\n| | |\n|---|---|\n| learning rate | %g (%s) |\n| sequences a step | %llu "
        "|\n"
        "| steps | %llu |\n| epochs | %.2f |\n| seed | %llu |\n\nThe course of the training is in "
        "`trainer_state.json`.\n",
        model, name && name[1] ? name + 1 : o->output_dir, model,
        config_string(run->cfg, "dataset"), o->schedule.learning_rate, o->schedule.type,
        (unsigned long long)run->plan.step_examples, (unsigned long long)run->state.step,
        train_plan_epoch(&run->plan, o, run->state.step), (unsigned long long)o->seed);
    return write_text(run, o->output_dir, "README.md", text);
}
