/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"

void (*session_before_warning)(void);
int (*session_cancelled)(void);
void (*session_progress)(const char *what, uint64_t done, uint64_t total);

static void on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user;
    if (session_progress)
        session_progress(what, done, total);
}

static int32_t on_cancel(void *user)
{
    (void)user;
    return session_cancelled && session_cancelled();
}

static void on_log(void *user, int32_t level, const char *message)
{
    (void)user;
    if (level > KT_LOG_WARNING)
        return;
    if (session_before_warning)
        session_before_warning();
    app_warn("%s", message);
}

static int parse_size(const config *cfg, const char *key, uint64_t *bytes)
{
    const char *text = config_string(cfg, key);
    *bytes = 0;
    if (!text)
        return APP_OK;
    char *end;
    double size = strtod(text, &end);
    static const char units[] = "KMGT";
    const char *unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        size = ldexp(size, 10 * (int)(unit - units + 1));
        end += strcmp(end + 1, "iB") == 0 ? 3 : 1;
    }
    if (end == text || *end || !(size >= 1) || size > 1e18)
        return config_fail(cfg, key, "%s is not a size; write bytes, or a number with K, M, G or T",
                           text);
    *bytes = (uint64_t)size;
    return APP_OK;
}

static int create_context(session *s, int32_t num_threads)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = num_threads;
    options.pin_threads = config_bool(s->cfg, "kt_pin_threads");
    options.log = on_log;
    options.cancel = on_cancel;
    options.progress = on_progress;
    options.memory_limit = s->memory_limit;
    kt_status status = kt_context_create(&options, &s->ctx);
    return status == KT_OK ? APP_OK : app_fail("cannot start libkt: %s", kt_last_error(NULL));
}

int session_open(session *s, const config *cfg)
{
    *s = (session){.cfg = cfg};
    int rc = parse_size(cfg, "memory_limit", &s->memory_limit);
    if (rc == APP_OK)
        rc = parse_size(cfg, "kt_gpu_memory", &s->gpu_memory);
    if (rc == APP_OK)
        rc = create_context(s, 0);
    if (rc != APP_OK)
        return rc;
    int64_t wanted = config_int(cfg, "cpu_infer");
    s->num_cores = kt_context_num_threads(s->ctx);
    if (wanted < s->num_cores) {
        kt_context_free(s->ctx);
        s->ctx = NULL;
        rc = create_context(s, (int32_t)wanted);
    }
    return rc;
}

void session_warn_of_threads(const session *s)
{
    if (config_find(s->cfg, "cpu_infer") && config_int(s->cfg, "cpu_infer") > s->num_cores)
        config_warn(s->cfg, "cpu_infer",
                    "%s threads are more than the %d core%s that this process may use; it runs %d",
                    config_string(s->cfg, "cpu_infer"), s->num_cores, s->num_cores == 1 ? "" : "s",
                    kt_context_num_threads(s->ctx));
}

void session_close(session *s)
{
    kt_executor_free(s->executor);
    kt_lora_free(s->lora);
    kt_tokenizer_free(s->tokenizer);
    kt_model_free(s->model);
    kt_context_free(s->ctx);
    *s = (session){0};
}

/* Its config.json comes last, so that other errors would name whatever is looked for first. */
static bool is_unfinished(const char *folder)
{
    char *record = app_text("%s/kt_convert.json", folder);
    char *last = app_text("%s/config.json", folder);
    bool unfinished = !access(record, F_OK) && access(last, F_OK);
    free(record);
    free(last);
    return unfinished;
}

int session_check_path(const config *cfg, const char *key)
{
    const char *path = config_string(cfg, key);
    if (!path || !*path)
        return config_fail(cfg, key, "the key is missing; it must name a local folder or file");
    if (access(path, R_OK))
        return config_fail(cfg, key, "%s: %m", path);
    if (!strcmp(key, "model_name_or_path") && is_unfinished(path))
        return config_fail(cfg, key,
                           "%s: is a conversion that is not finished; give its kt convert command "
                           "again",
                           path);
    return APP_OK;
}

int session_told(const session *s, const char *key, kt_status status)
{
    if (status == KT_OK)
        return APP_OK;
    if (status == KT_ERROR_OUT_OF_MEMORY && s->memory_limit)
        key = "memory_limit";
    return config_fail(s->cfg, key, "%s", kt_last_error(s->ctx));
}

int session_load_tokenizer(session *s)
{
    int rc = session_check_path(s->cfg, "model_name_or_path");
    if (rc != APP_OK)
        return rc;
    return session_told(
        s, "model_name_or_path",
        kt_tokenizer_load(s->ctx, config_string(s->cfg, "model_name_or_path"), &s->tokenizer));
}

int session_check_template(session *s)
{
    const char *name = config_string(s->cfg, "template");
    const char *known = kt_template_names();
    if (!name)
        return config_fail(s->cfg, "template", "the key is missing; choose one of %s", known);
    size_t length = strlen(name);
    for (const char *p = known; *p; p += strspn(p, ", ")) {
        size_t n = strcspn(p, ",");
        if (n == length && !strncmp(p, name, n))
            return APP_OK;
        p += n;
    }
    return config_fail(s->cfg, "template", "%s is not known; choose one of %s", name, known);
}

int session_load_model(session *s)
{
    int rc = session_check_path(s->cfg, "model_name_or_path");
    if (rc != APP_OK)
        return rc;
    return session_told(
        s, "model_name_or_path",
        kt_model_load(s->ctx, config_string(s->cfg, "model_name_or_path"), NULL, &s->model));
}

int session_load_adapter(session *s)
{
    const char *path = config_string(s->cfg, "adapter_name_or_path");
    if (!path)
        return APP_OK;
    if (strchr(path, ','))
        return config_fail(s->cfg, "adapter_name_or_path",
                           "%s names several adapters; merge them first and give one", path);
    int rc = session_check_path(s->cfg, "adapter_name_or_path");
    if (rc != APP_OK)
        return rc;
    return session_told(s, "adapter_name_or_path", kt_lora_load(s->model, path, &s->lora));
}

kt_compute session_infer_compute(const session *s)
{
    const char *dtype = config_string(s->cfg, "infer_dtype");
    uint64_t narrow = 0, wide = 0;
    for (size_t i = 0; i < kt_model_num_tensors(s->model); i++) {
        kt_tensor_info t = {.size = sizeof t};
        if (kt_model_get_tensor(s->model, i, &t) == KT_OK && t.used == 1)
            *(t.dtype == KT_DTYPE_F32 ? &wide : &narrow) += t.num_bytes;
    }
    bool full = strcmp(dtype, "auto") ? !strcmp(dtype, "float32") : wide > narrow;
    return full ? KT_COMPUTE_F32 : KT_COMPUTE_BF16;
}

/* The rule file, or everything on kt_device. */
static int load_rule(session *s, kt_rule **rule)
{
    const char *path = config_string(s->cfg, "kt_optimize_rule");
    if (path && strcmp(config_string(s->cfg, "kt_device"), "auto") != 0)
        app_warn("kt_device is for runs without a rule file; kt_optimize_rule (%s) places the "
                 "modules",
                 path);
    if (path)
        return session_told(s, "kt_optimize_rule", kt_rule_load(s->ctx, path, rule));
    kt_status status = kt_rule_create(s->ctx, rule);
    if (status == KT_OK)
        status = kt_rule_add(*rule, NULL, config_string(s->cfg, "kt_device"), NULL);
    return session_told(s, "kt_device", status);
}

int session_create_executor(session *s, kt_compute compute)
{
    kt_rule *rule = NULL;
    kt_executor_options options;
    kt_executor_options_init(&options, sizeof options);
    options.compute = compute;
    session_warn_of_threads(s);
    int rc = load_rule(s, &rule);
    if (rc != APP_OK) {
        kt_rule_free(rule);
        return rc;
    }
    options.rule = rule;
    options.device_memory = s->gpu_memory;
    options.experts_backend = config_string(s->cfg, "kt_experts");
    kt_status status = kt_executor_create(s->model, s->lora, &options, &s->executor);
    bool experts = options.experts_backend && status == KT_ERROR_NOT_FOUND;
    rc = session_told(s, experts ? "kt_experts" : "model_name_or_path", status);
    kt_rule_free(rule);
    const char *sharing = config_string(s->cfg, "kt_experts_sharing");
    if (rc == APP_OK && sharing)
        rc = session_told(s, "kt_experts_sharing", kt_executor_set_sharing(s->executor, sharing));
    return rc;
}

/* The layer after the last of those from `first` on that have its backend. */
static int32_t run_end(const session *s, int32_t first, int32_t num_layers)
{
    const char *name = kt_executor_experts_backend(s->executor, first);
    int32_t end = first;
    while (end < num_layers && kt_executor_experts_backend(s->executor, end) == name)
        end++;
    return end;
}

char *session_experts(const session *s)
{
    kt_model_info info = {.size = sizeof info};
    if (kt_model_get_info(s->model, &info) != KT_OK)
        return NULL;
    const char *only = NULL;
    char *text = NULL;
    bool several = false;
    for (int32_t l = 0, end; l < info.num_hidden_layers; l = end) {
        const char *name = kt_executor_experts_backend(s->executor, l);
        end = run_end(s, l, info.num_hidden_layers);
        if (!name)
            continue;
        several = several || (only && only != name);
        only = name;
        char *run = end - l == 1 ? app_text("%s in layer %d", name, l)
                                 : app_text("%s in layers %d to %d", name, l, end - 1);
        char *longer = text ? app_text("%s, %s", text, run) : app_copy(run);
        free(run);
        free(text);
        text = longer;
    }
    if (!text || several)
        return text;
    free(text);
    return app_copy(only);
}

kt_thinking session_thinking(const config *cfg)
{
    if (config_is_null(cfg, "enable_thinking"))
        return KT_THINKING_EITHER;
    return config_bool(cfg, "enable_thinking") ? KT_THINKING_ON : KT_THINKING_OFF;
}

int session_load_dataset(session *s, const char *key, kt_dataset **out)
{
    const config *cfg = s->cfg;
    kt_dataset_options options;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset = config_string(cfg, key);
    if (!options.dataset)
        return config_fail(cfg, key, "the key is missing; it names entries of dataset_info.json");
    options.dataset_dir = config_string(cfg, "dataset_dir");
    options.template_name = config_string(cfg, "template");
    if (config_int(cfg, "cutoff_len") > INT32_MAX)
        return config_fail(cfg, "cutoff_len", "too long; it must be at most %d", INT32_MAX);
    options.cutoff_len = (int32_t)config_int(cfg, "cutoff_len");
    options.max_samples = config_int(cfg, "max_samples");
    options.train_on_prompt = config_bool(cfg, "train_on_prompt");
    options.mask_history = config_bool(cfg, "mask_history");
    if (options.train_on_prompt && options.mask_history)
        return config_fail(cfg, "mask_history", "cannot be combined with train_on_prompt");
    options.default_system = config_string(cfg, "default_system");
    options.thinking = session_thinking(cfg);
    options.name = config_string(cfg, "identity_name");
    options.author = config_string(cfg, "identity_author");
    return session_told(s, key, kt_dataset_load(s->ctx, s->tokenizer, &options, out));
}
