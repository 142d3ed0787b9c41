/* SPDX-License-Identifier: Apache-2.0 */
/* Where a run may write, its checkpoints, and going on from one. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app.h"
#include "files.h"
#include "json_text.h"
#include "train.h"

/* Number of a "checkpoint-N" name; -1 for any other. */
static long long checkpoint_step(const char *name)
{
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1))
        return -1;
    const char *digits = name + sizeof prefix - 1;
    if (!*digits || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 18)
        return -1;
    return atoll(digits);
}

/* The checkpoint folder with the largest number, or NULL. */
static char *last_checkpoint(const char *folder)
{
    DIR *dir = opendir(folder);
    long long best = -1;
    for (const struct dirent *e; dir && (e = readdir(dir));)
        if (checkpoint_step(e->d_name) > best)
            best = checkpoint_step(e->d_name);
    if (dir)
        closedir(dir);
    return best < 0 ? NULL : app_text("%s/checkpoint-%lld", folder, best);
}

static bool has_weights(const char *folder)
{
    static const char *const names[] = {
        "adapter_model.safetensors",    "adapter_model.bin", "model.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"};
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = app_text("%s/%s", folder, names[i]);
        found |= !access(path, F_OK);
        free(path);
    }
    return found;
}

static int check_checkpoint(const config *cfg, const char *path)
{
    static const char *const names[] = {"adapter_model.safetensors", "trainer_state.json",
                                        "training_state.json", "optimizer.zst"};
    for (size_t i = 0; i < 4; i++) {
        char *file = app_text("%s/%s", path, names[i]);
        bool missing = access(file, R_OK) != 0;
        free(file);
        if (missing)
            return config_fail(cfg, "resume_from_checkpoint",
                               "%s has no %s, so training cannot go on from it; to start from its "
                               "adapter use adapter_name_or_path",
                               path, names[i]);
    }
    return APP_OK;
}

/* The rules of LLaMA-Factory: without resume_from_checkpoint, a run goes on from the newest
 * checkpoint of its folder unless overwrite_output_dir says to start anew. */
static int find_resume(train_options *o, const config *cfg)
{
    const char *wish = config_string(cfg, "resume_from_checkpoint");
    if (wish && strcmp(wish, "false")) {
        bool last = !strcmp(wish, "true") || !strcmp(wish, "last");
        o->resume = last ? last_checkpoint(o->output_dir) : app_copy(wish);
        if (!o->resume)
            return config_fail(cfg, "resume_from_checkpoint", "%s holds no checkpoint",
                               o->output_dir);
        if (!folder_exists(o->resume))
            return config_fail(cfg, "resume_from_checkpoint", "%s is not a folder", o->resume);
        return check_checkpoint(cfg, o->resume);
    }
    if (o->overwrite || !folder_exists(o->output_dir))
        return APP_OK;
    o->resume = last_checkpoint(o->output_dir);
    if (!o->resume)
        return has_weights(o->output_dir)
                   ? config_fail(cfg, "output_dir",
                                 "%s already holds a result; choose another folder or set "
                                 "overwrite_output_dir: true",
                                 o->output_dir)
                   : APP_OK;
    return check_checkpoint(cfg, o->resume);
}

int output_prepare(train_options *o, const config *cfg)
{
    int rc = o->do_train ? find_resume(o, cfg) : APP_OK;
    if (rc != APP_OK)
        return rc;
    bool fresh = !folder_exists(o->output_dir);
    if (folder_make(o->output_dir))
        return config_fail(cfg, "output_dir", "cannot create %s: %m", o->output_dir);
    if (folder_probe(o->output_dir))
        return config_fail(cfg, "output_dir", "cannot write into %s: %m", o->output_dir);
    if (fresh)
        rmdir(o->output_dir); /* made again when there is something to put into it */
    return APP_OK;
}

static int failed(train_run *run, const char *path)
{
    return config_fail(run->cfg, "output_dir", "cannot write %s: %m", path);
}

/* tmp-checkpoint-N, or a file that libkt was writing: NAME.PID-N.tmp. */
static bool is_unfinished(const char *name)
{
    int end = 0;
    const char *dash = strrchr(name, '-'), *pid = dash;
    while (pid && pid > name && strchr("0123456789", pid[-1]))
        pid--;
    if (pid && pid < dash && pid > name && pid[-1] == '.')
        sscanf(dash, "-%*u.tmp%n", &end);
    return (end && !dash[end]) || (!strncmp(name, "tmp-", 4) && checkpoint_step(name + 4) >= 0);
}

/* What a killed run was writing. */
static int remove_unfinished(const char *folder)
{
    DIR *dir = opendir(folder);
    int result = 0;
    for (const struct dirent *e; dir && !result && (e = readdir(dir));) {
        if (!is_unfinished(e->d_name))
            continue;
        char *path = app_text("%s/%s", folder, e->d_name);
        result = folder_exists(path) ? folder_remove(path) : unlink(path);
        free(path);
    }
    if (dir)
        closedir(dir);
    return result;
}

int output_make_folder(train_run *run)
{
    const char *folder = run->options.output_dir;
    if (folder_make(folder))
        return failed(run, folder);
    if (folder_lock(folder))
        return config_fail(run->cfg, "output_dir",
                           "another kt train writes into %s; wait for its end or choose another "
                           "folder",
                           folder);
    return remove_unfinished(folder) ? failed(run, folder) : APP_OK;
}

/* In new memory; that of a GGUF file is the one it lies in. */
static char *model_folder(const char *model)
{
    const char *slash = strrchr(model, '/');
    if (folder_exists(model))
        return app_copy(model);
    return slash ? app_text("%.*s", (int)(slash - model), model) : app_copy(".");
}

int output_save_adapter(train_run *run, const char *folder)
{
    static const char *const names[] = {
        "tokenizer.json",    "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja",   "vocab.json",
        "merges.txt",        "tokenizer.model"};
    if (kt_lora_save(run->session.lora, folder) != KT_OK)
        return config_fail(run->cfg, "output_dir", "%s", kt_last_error(run->session.ctx));
    char *model = model_folder(config_string(run->cfg, "model_name_or_path"));
    int rc = APP_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && rc == APP_OK; i++) {
        char *from = app_text("%s/%s", model, names[i]);
        char *to = app_text("%s/%s", folder, names[i]);
        if (!access(from, R_OK) && file_copy(from, to))
            rc = failed(run, to);
        free(from);
        free(to);
    }
    free(model);
    return rc;
}

static uint64_t mix(uint64_t hash, const int32_t *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ (uint32_t)numbers[i]) * 0x100000001b3;
    return hash;
}

/* FNV-1a over the ids and labels of the training set, in new memory. */
static char *data_hash(const kt_dataset *dataset)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < kt_dataset_num_examples(dataset); i++) {
        kt_example e = {.size = sizeof e};
        kt_dataset_get(dataset, i, &e);
        int32_t length = (int32_t)e.length;
        hash = mix(mix(mix(hash, &length, 1), e.input_ids, e.length), e.labels, e.length);
    }
    return app_text("%016llx", (unsigned long long)hash);
}

static int save_training_state(train_run *run, const char *folder)
{
    const train_state *s = &run->state;
    const train_options *o = &run->options;
    char *hash = data_hash(run->dataset);
    json_t *json = json_pack(
        "{sIsIsIsfsfsIsbsIsssIsIsIsIsb}", "step", (json_int_t)s->step, "tokens",
        (json_int_t)s->tokens, "padded_tokens", (json_int_t)s->padded_tokens, "loss_total",
        s->loss_total, "loss_window", s->loss_window, "last_logged", (json_int_t)s->last_logged,
        "unevaluated", s->unevaluated, "num_examples", (json_int_t)run->plan.num_examples, "data",
        hash, "per_device_train_batch_size", (json_int_t)o->batch, "gradient_accumulation_steps",
        (json_int_t)o->accumulation, "seed", (json_int_t)o->seed, "data_seed",
        (json_int_t)o->data_seed, "disable_shuffling", o->disable_shuffling);
    char *path = app_text("%s/training_state.json", folder);
    char *text = json_text(json, JSON_INDENT(2));
    int rc = file_write(path, text, strlen(text)) ? failed(run, path) : APP_OK;
    free(text);
    free(path);
    free(hash);
    json_decref(json);
    return rc;
}

static int fill_checkpoint(train_run *run, const char *folder, bool whole)
{
    if (folder_make(folder))
        return failed(run, folder);
    int rc = output_save_adapter(run, folder);
    if (rc == APP_OK && whole) {
        char *path = app_text("%s/optimizer.zst", folder);
        if (kt_optimizer_save(run->optimizer, path) != KT_OK)
            rc = config_fail(run->cfg, "output_dir", "%s", kt_last_error(run->session.ctx));
        free(path);
    }
    if (rc == APP_OK && whole)
        rc = save_training_state(run, folder);
    return rc == APP_OK ? output_save_state(run, folder) : rc;
}

/* Puts the finished folder in place of an older one of the same name. At no time is there none. */
static int replace_folder(const char *fresh, const char *target)
{
    if (!folder_exists(target))
        return rename(fresh, target);
    if (!renameat2(AT_FDCWD, fresh, AT_FDCWD, target, RENAME_EXCHANGE))
        return folder_remove(fresh);
    if (errno != EINVAL)
        return -1;
    /* A file system that cannot exchange names. */
    char *old = app_text("%s.old", target);
    int result = folder_remove(old);
    if (!result)
        result = rename(target, old);
    if (!result)
        result = rename(fresh, target);
    if (!result)
        result = folder_remove(old);
    free(old);
    return result;
}

typedef struct found {
    struct timespec time;
    long long step;
} found;

static int older_first(const void *a, const void *b)
{
    const found *x = a, *y = b;
    if (x->time.tv_sec != y->time.tv_sec)
        return x->time.tv_sec < y->time.tv_sec ? -1 : 1;
    if (x->time.tv_nsec != y->time.tv_nsec)
        return x->time.tv_nsec < y->time.tv_nsec ? -1 : 1;
    return x->step < y->step ? -1 : x->step > y->step;
}

/* Removes the oldest checkpoints beyond save_total_limit. */
static void rotate(const train_options *o)
{
    DIR *dir = o->save_total_limit ? opendir(o->output_dir) : NULL;
    found *all = NULL;
    size_t num = 0;
    for (const struct dirent *e; dir && (e = readdir(dir));) {
        struct stat st;
        if (checkpoint_step(e->d_name) < 0 || fstatat(dirfd(dir), e->d_name, &st, 0))
            continue;
        all = app_resize(all, num + 1, sizeof *all);
        all[num++] = (found){st.st_mtim, checkpoint_step(e->d_name)};
    }
    if (dir)
        closedir(dir);
    if (num)
        qsort(all, num, sizeof *all, older_first);
    for (size_t i = 0; i + o->save_total_limit < num; i++) {
        char *path = app_text("%s/checkpoint-%lld", o->output_dir, all[i].step);
        char *going = app_text("%s/tmp-checkpoint-%lld", o->output_dir, all[i].step);
        if (!rename(path, going)) /* so that a kill leaves no torn checkpoint */
            folder_remove(going);
        free(going);
        free(path);
    }
    free(all);
}

int output_checkpoint(train_run *run, bool whole)
{
    const train_options *o = &run->options;
    unsigned long long step = run->state.step;
    char *fresh = app_text("%s/tmp-checkpoint-%llu", o->output_dir, step);
    char *target = app_text("%s/checkpoint-%llu", o->output_dir, step);
    int rc = folder_remove(fresh) ? failed(run, fresh) : fill_checkpoint(run, fresh, whole);
    if (rc == APP_OK && replace_folder(fresh, target))
        rc = failed(run, target);
    if (rc != APP_OK)
        folder_remove(fresh);
    else
        rotate(o);
    if (rc == APP_OK && whole) {
        free(run->saved);
        run->saved = app_copy(target);
        run->saved_step = step;
    }
    free(target);
    free(fresh);
    return rc;
}

static json_t *load_json(train_run *run, const char *name, int *rc)
{
    json_error_t error;
    char *path = app_text("%s/%s", run->options.resume, name);
    json_t *json = json_load_file(path, 0, &error);
    if (!json_is_object(json))
        *rc = config_fail(run->cfg, "resume_from_checkpoint", "%s:%d: %s", path, error.line,
                          json ? "expected an object" : error.text);
    free(path);
    return json;
}

static uint64_t whole_number(const json_t *json, const char *name)
{
    json_int_t n = json_integer_value(json_object_get(json, name));
    return n > 0 ? (uint64_t)n : 0;
}

/* What decides which examples a step takes must be as it was. */
static int check_same(train_run *run, const json_t *json)
{
    const train_options *o = &run->options;
    const struct {
        const char *key;
        uint64_t now;
    } same[] = {{"per_device_train_batch_size", o->batch},
                {"gradient_accumulation_steps", o->accumulation},
                {"seed", o->seed},
                {"data_seed", o->data_seed}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (whole_number(json, same[i].key) != same[i].now)
            return config_fail(run->cfg, same[i].key,
                               "is %llu, but the checkpoint %s was made with %llu; use the same",
                               (unsigned long long)same[i].now, o->resume,
                               (unsigned long long)whole_number(json, same[i].key));
    if (json_is_true(json_object_get(json, "disable_shuffling")) != o->disable_shuffling)
        return config_fail(run->cfg, "disable_shuffling",
                           "differs from that of the checkpoint %s; use the same", o->resume);
    if (whole_number(json, "num_examples") != run->plan.num_examples)
        return config_fail(run->cfg, "dataset",
                           "has %llu examples, but the checkpoint %s was made with %llu; use the "
                           "same data",
                           (unsigned long long)run->plan.num_examples, o->resume,
                           (unsigned long long)whole_number(json, "num_examples"));
    const char *then = json_string_value(json_object_get(json, "data"));
    char *now = data_hash(run->dataset);
    bool same_data = then && !strcmp(then, now);
    free(now);
    return same_data ? APP_OK
                     : config_fail(run->cfg, "dataset",
                                   "its tokens are not those that the checkpoint %s was made with; "
                                   "use the same data, template and cutoff_len",
                                   o->resume);
}

static int read_state(train_run *run, const json_t *json, json_t *trainer)
{
    train_state *s = &run->state;
    json_t *history = json_object_get(trainer, "log_history");
    s->step = whole_number(json, "step");
    s->tokens = whole_number(json, "tokens");
    s->padded_tokens = whole_number(json, "padded_tokens");
    s->loss_total = json_number_value(json_object_get(json, "loss_total"));
    s->loss_window = json_number_value(json_object_get(json, "loss_window"));
    s->last_logged = whole_number(json, "last_logged");
    s->unevaluated = run->evaluation && json_is_true(json_object_get(json, "unevaluated"));
    if (!json_is_array(history) || !s->step)
        return config_fail(run->cfg, "resume_from_checkpoint",
                           "%s/trainer_state.json is not what kt train writes",
                           run->options.resume);
    if (s->step > run->plan.total_steps)
        return config_fail(run->cfg, "resume_from_checkpoint",
                           "%s is at step %llu, beyond the run's last step %llu",
                           run->options.resume, (unsigned long long)s->step,
                           (unsigned long long)run->plan.total_steps);
    json_array_extend(s->history, history);
    run->saved_step = s->step;
    run->saved = app_copy(run->options.resume);
    return APP_OK;
}

int output_load_checkpoint(train_run *run)
{
    int rc = APP_OK;
    json_t *json = load_json(run, "training_state.json", &rc);
    json_t *trainer = rc == APP_OK ? load_json(run, "trainer_state.json", &rc) : NULL;
    if (rc == APP_OK)
        rc = check_same(run, json);
    if (rc == APP_OK)
        rc = read_state(run, json, trainer);
    json_decref(trainer);
    json_decref(json);
    if (rc != APP_OK)
        return rc;
    char *path = app_text("%s/optimizer.zst", run->options.resume);
    if (kt_optimizer_load(run->optimizer, path) != KT_OK)
        rc = config_fail(run->cfg, "resume_from_checkpoint", "%s", kt_last_error(run->session.ctx));
    free(path);
    return rc;
}
