/* SPDX-License-Identifier: Apache-2.0 */
/* How a run ends: stopped by the user, or finished with its results. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "lost.h"
#include "output.h"
#include "stop.h"
#include "train.h"

static void put_quoted(FILE *out, const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-+=:,./@%";
    if (*text && strspn(text, plain) == strlen(text)) {
        fputs(text, out);
        return;
    }
    fputc('\'', out);
    for (; *text; text++)
        fputs(*text == '\'' ? "'\\''" : (char[]){*text, 0}, out);
    fputc('\'', out);
}

/* In new memory; "" when there is no checkpoint. */
static char *resume_text(const train_run *run)
{
    const train_options *o = &run->options;
    char *text = NULL, *argument = app_text("resume_from_checkpoint=%s", run->saved);
    size_t size;
    FILE *out = run->saved ? open_memstream(&text, &size) : NULL;
    if (out) {
        fprintf(out, "to go on after step %llu of %llu:\n  kt train ",
                (unsigned long long)run->saved_step, (unsigned long long)run->plan.total_steps);
        put_quoted(out, o->yaml);
        for (int i = 0; i < o->num_overrides; i++) {
            if (!strncmp(o->overrides[i], "resume_from_checkpoint=", 23))
                continue;
            fputc(' ', out);
            put_quoted(out, o->overrides[i]);
        }
        fputc(' ', out);
        put_quoted(out, argument);
        fclose(out);
    }
    free(argument);
    return text ? text : app_copy("");
}

void train_advise(train_run *run)
{
    char *how = resume_text(run), *before = run->advice;
    run->advice = *how ? app_text("%s\n", how) : NULL;
    lost_advise(run->advice);
    free(before);
    free(how);
}

/* The reader of standard output may be gone, as tee is after Ctrl-C: then on standard error. */
static void say_last(const char *what, const train_run *run)
{
    char *how = resume_text(run);
    char *text = app_text("%s%s%s", what, *what && *how ? "\n" : "", how);
    progress_message("%s", text);
    if (out_flush())
        err_print("%s\n", text);
    free(text);
    free(how);
}

void train_say_resume(const train_run *run)
{
    if (run->saved)
        say_last("", run);
}

int train_stop(train_run *run)
{
    char what[80];
    unsigned long long step = run->state.step;
    int rc = step && step != run->saved_step ? output_checkpoint(run, true) : APP_OK;
    if (rc != APP_OK)
        return rc;
    snprintf(what, sizeof what,
             step ? "stopped after step %llu"
                  : "stopped before the first step was done; nothing to keep",
             step);
    say_last(what, run);
    return APP_INTERRUPTED;
}

static double train_samples(const train_run *run)
{
    const train_options *o = &run->options;
    return o->max_steps > 0 ? (double)(run->plan.total_steps * run->plan.step_examples)
                            : (double)run->plan.num_examples * o->epochs;
}

static double all_tokens(const train_run *run)
{
    double total = 0;
    for (size_t i = 0; i < run->plan.num_examples; i++) {
        kt_example e = {.size = sizeof e};
        if (kt_dataset_get(run->dataset, i, &e) == KT_OK)
            total += (double)e.length;
    }
    return total;
}

static json_t *train_metrics(const train_run *run)
{
    double seconds = now_seconds() - run->start_time;
    seconds = seconds > 1e-6 ? seconds : 1e-6;
    json_t *m = json_pack("{sfsfsfsfsf}", "train_runtime", round(seconds * 1e4) / 1e4,
                          "train_samples_per_second",
                          round(train_samples(run) / seconds * 1e3) / 1e3, "train_steps_per_second",
                          round((double)run->plan.total_steps / seconds * 1e3) / 1e3, "total_flos",
                          (double)run->state.padded_tokens * run->flops_per_token, "train_loss",
                          run->state.loss_total / (double)run->state.step);
    if (run->options.tokens_per_second)
        json_object_set_new(m, "train_tokens_per_second",
                            json_real(round((double)run->state.tokens / seconds * 1e3) / 1e3));
    return m;
}

static int save_train_results(train_run *run, json_t *metrics)
{
    double epoch = train_plan_epoch(&run->plan, &run->options, run->state.step);
    json_object_set_new(metrics, "epoch", json_real(epoch));
    if (run->options.effective_tokens)
        json_object_set_new(metrics, "effective_tokens_per_sec",
                            json_real(all_tokens(run) * epoch /
                                      json_real_value(json_object_get(metrics, "train_runtime"))));
    return output_save_results(run, "train", metrics);
}

int train_finish(train_run *run)
{
    char peak[FORMAT_SIZE];
    const char *folder = run->options.output_dir;
    json_t *metrics = train_metrics(run);
    int rc = output_log(run, json_copy(metrics));
    if (rc == APP_OK)
        rc = output_save_adapter(run, folder);
    if (rc == APP_OK)
        rc = save_train_results(run, metrics);
    if (rc == APP_OK)
        rc = output_save_state(run, folder);
    if (rc == APP_OK)
        rc = output_model_card(run);
    if (rc == APP_OK && run->options.plot_loss)
        rc = output_plot(run);
    if (rc == APP_OK)
        progress_message("train_loss %.4f in %.1f s, at most %s allocated; adapter: %s",
                         json_real_value(json_object_get(metrics, "train_loss")),
                         json_real_value(json_object_get(metrics, "train_runtime")),
                         format_bytes(peak, kt_context_memory_peak(run->session.ctx)), folder);
    json_decref(metrics);
    return rc;
}

static int is_stopped(void)
{
    return stop_requests() > 0;
}

int train_final_evaluation(train_run *run)
{
    json_t *metrics;
    session_cancelled = is_stopped;
    int rc = train_evaluate(run, &metrics);
    session_cancelled = NULL;
    if (rc == APP_INTERRUPTED)
        progress_message("stopped in the last evaluation; the adapter is whole: %s",
                         run->options.output_dir);
    if (rc != APP_OK)
        return rc;
    if (run->options.do_train)
        json_object_set_new(
            metrics, "epoch",
            json_real(train_plan_epoch(&run->plan, &run->options, run->state.step)));
    progress_message("eval_loss %.4f", json_real_value(json_object_get(metrics, "eval_loss")));
    rc = output_save_results(run, "eval", metrics);
    json_decref(metrics);
    return rc;
}
