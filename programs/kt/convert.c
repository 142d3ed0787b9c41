/* SPDX-License-Identifier: Apache-2.0 */
/* kt convert: a checkpoint in another format of weights. */
#include <stdio.h>
#include <string.h>

#include "app.h"
#include "args.h"
#include "bar.h"
#include "output.h"
#include "session.h"
#include "stop.h"

static const struct {
    const char *name;
    kt_dtype dtype;
} formats[] = {{"bf16", KT_DTYPE_BF16},
               {"fp8", KT_DTYPE_F8_E4M3},
               {"int8", KT_DTYPE_I8},
               {"int4", KT_DTYPE_I4},
               {"f32", KT_DTYPE_F32}};
enum { NUM_FORMATS = sizeof formats / sizeof *formats };

static int is_interrupted(void)
{
    return stop_requests() > 0;
}

static struct {
    bool terminal;
    double begun, drawn; /**< seconds; when numbers were shown last */
    uint64_t first;      /**< bytes that were done when it began */
    uint64_t total;
    int tenths; /**< told in lines, where there is no terminal */
} screen;

/* What is done when it is called first is an earlier run's, and does not count for the speed. */
static void on_progress(const char *what, uint64_t done, uint64_t total)
{
    char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE], d[FORMAT_SIZE], text[200];
    double now = now_seconds(), share = total ? (double)done / (double)total : 1;
    if (strcmp(what, "converting") != 0)
        return;
    if (!screen.total)
        screen.first = done;
    screen.total = total;
    if (done == screen.first && done < total)
        return;
    double speed = (double)(done - screen.first) / (now - screen.begun + 1e-9);
    snprintf(text, sizeof text, " %s of %s  %s/s  left %s", format_bytes(a, done),
             format_bytes(b, total), format_bytes(c, (uint64_t)speed),
             format_time(d, speed > 0 ? (double)(total - done) / speed : 0));
    if (screen.terminal && now - screen.drawn > 0.1) {
        bar_draw(share, text);
        screen.drawn = now;
    } else if (!screen.terminal && now - screen.drawn > 1 && (int)(10 * share) > screen.tenths) {
        screen.tenths = (int)(10 * share);
        screen.drawn = now;
        out_print("%3.0f%%%s\n", 100 * share, text);
        out_flush();
    }
}

static void begin(void)
{
    stop_catch("stopping after what is being written; Ctrl-C again to leave at once", NULL);
    screen.terminal = out_is_terminal();
    screen.begun = screen.drawn = now_seconds();
    session_cancelled = is_interrupted;
    session_progress = on_progress;
    session_before_warning = bar_clear;
}

static void end(void)
{
    bar_clear();
    session_cancelled = NULL;
    session_progress = NULL;
    session_before_warning = NULL;
}

static int print_result(session *s, const char *target)
{
    kt_model_options options;
    uint64_t bytes = 0;
    char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE];
    kt_model_options_init(&options, sizeof options);
    options.check_finite = 0;
    if (kt_model_load(s->ctx, target, &options, &s->model) != KT_OK)
        return app_fail("%s", kt_last_error(s->ctx));
    for (size_t i = 0; i < kt_model_num_tensors(s->model); i++) {
        kt_tensor_info t = {.size = sizeof t};
        if (kt_model_get_tensor(s->model, i, &t) == KT_OK)
            bytes += t.num_bytes;
    }
    out_print("%s: %s from %s in %s\n", target, format_bytes(a, bytes),
              format_bytes(b, screen.total), format_time(c, now_seconds() - screen.begun));
    return APP_OK;
}

static int convert(const config *cfg, const char *target, const kt_convert_options *options)
{
    session s;
    int rc = session_open(&s, cfg);
    if (rc == APP_OK)
        rc = session_check_path(cfg, "model_name_or_path");
    if (rc == APP_OK) {
        session_warn_of_threads(&s);
        if (config_string(cfg, "adapter_name_or_path"))
            config_warn(cfg, "adapter_name_or_path",
                        "is not converted; it works with the converted model as it is");
        begin();
        kt_status status =
            kt_convert(s.ctx, config_string(cfg, "model_name_or_path"), target, options);
        end();
        if (status == KT_ERROR_CANCELLED) {
            out_print("stopped; the same command goes on from here\n");
            rc = APP_INTERRUPTED;
        } else {
            rc = status == KT_OK ? print_result(&s, target) : app_fail("%s", kt_last_error(s.ctx));
        }
    }
    session_close(&s);
    return rc;
}

static int find_format(const char *name, int32_t *dtype)
{
    for (int i = 0; name && i < NUM_FORMATS; i++) {
        if (!strcmp(formats[i].name, name)) {
            *dtype = formats[i].dtype;
            return APP_OK;
        }
    }
    return name ? app_usage("--to %s: is not a format; choose bf16, fp8, int8, int4 or f32", name)
                : app_usage("kt convert needs --to FORMAT; see kt help convert");
}

int convert_command(int argc, char **argv)
{
    const char *to = NULL;
    bool experts_only = false;
    const arg_option arg_options[] = {
        {.name = "--to", .value = &to}, {.name = "--experts-only", .flag = &experts_only}, {0}};
    arguments args;
    kt_convert_options options;
    kt_convert_options_init(&options, sizeof options);
    int rc = arguments_parse(&args, "convert", argc, argv, arg_options);
    if (rc == APP_OK)
        rc = find_format(to, &options.to);
    if (rc != APP_OK)
        return rc;
    if (!args.num_overrides || strchr(args.overrides[0], '='))
        return app_usage("kt convert needs two folders, SRC and DST; see kt help convert");
    options.experts_only = experts_only;
    config cfg;
    rc = config_load(&cfg, args.path, args.overrides + 1, args.num_overrides - 1);
    if (rc == APP_OK)
        rc = convert(&cfg, args.overrides[0], &options);
    config_free(&cfg);
    return rc;
}
