/* SPDX-License-Identifier: Apache-2.0 */
/* A bar at the bottom of a terminal; lines where there is none. */
#include <stdarg.h>
#include <stdio.h>

#include "app.h"
#include "bar.h"
#include "output.h"
#include "train.h"

static struct {
    bool terminal;
    uint64_t tokens; /**< at the latest log entry */
    double time;     /**< of that entry */
    double drawn;    /**< when the bar was drawn last */
    const train_run *run;
    double loss; /**< of the latest step */
} screen;

static void show_layers(const char *what, uint64_t done, uint64_t total);

void progress_begin(const train_run *run)
{
    screen.run = run;
    screen.terminal = out_is_terminal() && !run->options.quiet;
    screen.tokens = run->state.tokens;
    screen.time = now_seconds();
    session_before_warning = bar_clear;
    session_progress = show_layers;
}

static double seconds_left(const train_run *run)
{
    uint64_t done = run->state.step - run->start_step;
    double elapsed = now_seconds() - run->start_time;
    return done ? elapsed / (double)done * (double)(run->plan.total_steps - run->state.step) : 0;
}

static double tokens_per_second(const train_run *run)
{
    double elapsed = now_seconds() - screen.time;
    return elapsed > 0 ? (double)(run->state.tokens - screen.tokens) / elapsed : 0;
}

static void print_numbers(char *out, size_t size, const char *suffix)
{
    char left[FORMAT_SIZE];
    const train_run *run = screen.run;
    if (run->state.step == run->start_step)
        snprintf(out, size, " %llu/%llu%s", (unsigned long long)run->state.step,
                 (unsigned long long)run->plan.total_steps, suffix);
    else
        snprintf(out, size, " %llu/%llu  loss %.4f  lr %.2e  %.0f tokens/s  left %s%s",
                 (unsigned long long)run->state.step, (unsigned long long)run->plan.total_steps,
                 screen.loss, run->learning_rate, tokens_per_second(run),
                 format_time(left, seconds_left(run)), suffix);
}

static void draw(const char *suffix)
{
    char numbers[200];
    print_numbers(numbers, sizeof numbers, suffix);
    bar_draw((double)screen.run->state.step / (double)screen.run->plan.total_steps, numbers);
    screen.drawn = now_seconds();
}

void progress_step(double loss)
{
    screen.loss = loss;
    if (screen.terminal)
        draw("");
}

/* Steps of a large model take minutes: show where in the model they are. */
static void show_layers(const char *what, uint64_t done, uint64_t total)
{
    char suffix[64];
    if (!screen.terminal || now_seconds() - screen.drawn < 0.5)
        return;
    snprintf(suffix, sizeof suffix, "  %s %llu/%llu", what, (unsigned long long)done,
             (unsigned long long)total);
    draw(suffix);
}

static double member(const json_t *item, const char *name)
{
    return json_number_value(json_object_get(item, name));
}

void progress_log(const train_run *run, const json_t *item)
{
    char left[FORMAT_SIZE];
    bool trained = json_object_get(item, "loss"), evaluated = json_object_get(item, "eval_loss");
    if (!trained && !evaluated)
        return;
    bar_clear();
    out_print("step %llu/%llu  epoch %.2f", (unsigned long long)run->state.step,
              (unsigned long long)run->plan.total_steps, member(item, "epoch"));
    if (evaluated) {
        out_print("  eval_loss %.4f\n", member(item, "eval_loss"));
    } else {
        out_print("  loss %.4f", member(item, "loss"));
        if (json_object_get(item, "grad_norm"))
            out_print("  grad_norm %.4f", member(item, "grad_norm"));
        out_print("  lr %.4e  %.0f tokens/s  left %s\n", member(item, "learning_rate"),
                  tokens_per_second(run), format_time(left, seconds_left(run)));
        screen.tokens = run->state.tokens;
        screen.time = now_seconds();
    }
    out_flush();
}

void progress_message(const char *format, ...)
{
    va_list args;
    bar_clear();
    va_start(args, format);
    out_vprint(format, args);
    va_end(args);
    out_print("\n");
    out_flush();
}

void progress_end(void)
{
    bar_clear();
    out_flush();
    session_before_warning = NULL;
    session_progress = NULL;
}
