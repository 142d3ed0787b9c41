/* SPDX-License-Identifier: Apache-2.0 */
/* Where a run may write, which checkpoint it goes on from, and whether that one is whole. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app.h"
#include "files.h"
#include "json_text.h"
#include "train.h"

#define RECORD "training_state.json"

const char *const checkpoint_parts[] = {"adapter_model.safetensors", "adapter_config.json",
                                        "optimizer.zst", "trainer_state.json", NULL};

long long checkpoint_step(const char *name)
{
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1))
        return -1;
    const char *digits = name + sizeof prefix - 1;
    if (!*digits || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 18)
        return -1;
    return atoll(digits);
}

/* Why `name` of the checkpoint cannot be used, in new memory; errno says it. *unread: it may be
 * there. */
static char *unusable(const char *folder, const char *name, bool *unread)
{
    *unread = errno != ENOENT;
    return errno == ENOENT
               ? app_text("%s has no %s, so training cannot go on from it; to start from its "
                          "adapter use adapter_name_or_path",
                          folder, name)
               : app_text("%s/%s: cannot be read: %s", folder, name, strerror(errno));
}

/* What speaks against part `name`; NULL when nothing does. `files` is what the record knows of the
 * parts: NULL in those that older versions wrote. */
static char *part_problem(const char *folder, const char *name, const json_t *files, bool read,
                          bool *unread)
{
    struct stat st;
    uint64_t size, hash = 0;
    char text[20], *path = app_text("%s/%s", folder, name), *problem = NULL;
    const json_t *part = json_object_get(files, name);
    const char *then = json_string_value(json_object_get(part, "hash"));
    bool there = !stat(path, &st);
    if (there && !S_ISREG(st.st_mode))
        problem = app_text("%s is no regular file; go on from another checkpoint", path);
    else if (!there || (read && files && file_hash(path, &size, &hash)))
        problem = unusable(folder, name, unread);
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    if (!problem && files &&
        (json_integer_value(json_object_get(part, "bytes")) != st.st_size || !then ||
         (read && strcmp(then, text))))
        problem = app_text("%s is not the file that the checkpoint was written with: its " RECORD
                           " tells another size or hash; go on from another checkpoint",
                           path);
    free(path);
    return problem;
}

/* What speaks against going on from the checkpoint, in new memory; NULL when nothing does. `read`:
 * look at contents, not at sizes alone. */
static char *checkpoint_problem(const char *folder, bool read, bool *unread)
{
    json_error_t error;
    size_t size;
    char *path = app_text("%s/" RECORD, folder);
    char *text = file_read(path, &size), *problem = text ? NULL : unusable(folder, RECORD, unread);
    json_t *record = text ? json_read(text, size, &error) : NULL;
    if (text && !json_is_object(record))
        problem = app_text("%s:%d: %s", path, record ? 1 : error.line,
                           record ? "expected an object" : error.text);
    const json_t *files = json_object_get(record, "files");
    for (size_t i = 0; checkpoint_parts[i] && !problem; i++)
        problem = part_problem(folder, checkpoint_parts[i], files, read, unread);
    json_decref(record);
    free(text);
    free(path);
    return problem;
}

bool checkpoint_is_whole(const char *folder)
{
    bool unread = false;
    char *problem = checkpoint_problem(folder, false, &unread);
    free(problem);
    return !problem || unread;
}

/* *path: the newest checkpoint that training can go on from; if there is none, the newest; or NULL.
 * Returns -1 with errno set when the folder cannot be read. */
static int last_checkpoint(const char *folder, char **path)
{
    DIR *dir = opendir(folder);
    long long newest = -1, best = -1;
    *path = NULL;
    if (!dir)
        return -1;
    errno = 0;
    for (const struct dirent *e; (e = readdir(dir)); errno = 0) {
        long long step = checkpoint_step(e->d_name);
        char *candidate = app_text("%s/%s", folder, e->d_name);
        newest = step > newest ? step : newest;
        if (step > best && checkpoint_is_whole(candidate))
            best = step;
        free(candidate);
    }
    int reason = errno;
    closedir(dir);
    errno = reason;
    if (reason)
        return -1;
    if (best >= 0 && best < newest)
        app_warn("training cannot go on from %s/checkpoint-%lld; it goes on from checkpoint-%lld",
                 folder, newest, best);
    if (newest >= 0)
        *path = app_text("%s/checkpoint-%lld", folder, best >= 0 ? best : newest);
    return 0;
}

static bool has_weights(const char *folder)
{
    static const char *const names[] = {
        "adapter_model.safetensors",    "adapter_model.bin", "model.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"};
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = app_text("%s/%s", folder, names[i]);
        found |= file_exists(path);
        free(path);
    }
    return found;
}

static int check_checkpoint(const config *cfg, const char *path)
{
    bool unread;
    char *problem = checkpoint_problem(path, true, &unread);
    int rc = problem ? config_fail(cfg, "resume_from_checkpoint", "%s", problem) : APP_OK;
    free(problem);
    return rc;
}

/* The rules of LLaMA-Factory: without resume_from_checkpoint, a run goes on from the newest
 * checkpoint of its folder unless overwrite_output_dir says to start anew. */
static int find_resume(train_options *o, const config *cfg)
{
    const char *wish = config_string(cfg, "resume_from_checkpoint");
    if (wish && strcmp(wish, "false")) {
        bool last = !strcmp(wish, "true") || !strcmp(wish, "last");
        if (!last)
            o->resume = app_copy(wish);
        else if (last_checkpoint(o->output_dir, &o->resume) && errno != ENOENT)
            return config_fail(cfg, "output_dir", "cannot list %s: %m", o->output_dir);
        if (!o->resume)
            return config_fail(cfg, "resume_from_checkpoint", "%s holds no checkpoint",
                               o->output_dir);
        if (!folder_exists(o->resume))
            return config_fail(cfg, "resume_from_checkpoint", "%s is not a folder", o->resume);
        return check_checkpoint(cfg, o->resume);
    }
    if (o->overwrite || !file_exists(o->output_dir))
        return APP_OK;
    if (last_checkpoint(o->output_dir, &o->resume))
        return config_fail(cfg, "output_dir", "cannot list %s: %m", o->output_dir);
    if (!o->resume)
        return has_weights(o->output_dir)
                   ? config_fail(cfg, "output_dir",
                                 "%s already holds a result; choose another folder or set "
                                 "overwrite_output_dir: true",
                                 o->output_dir)
                   : APP_OK;
    return check_checkpoint(cfg, o->resume);
}

int output_lock(const config *cfg, const char *folder)
{
    return folder_lock(folder)
               ? config_fail(cfg, "output_dir",
                             "another kt train writes into %s; wait for its end or choose another "
                             "folder",
                             folder)
               : APP_OK;
}

/* N of tmp-checkpoint-N.old, which is what a kill leaves of the one that was being replaced; -1 of
 * any other name. */
static long long replaced_step(const char *name)
{
    char *inner = app_copy(strncmp(name, "tmp-", 4) ? "" : name + 4), *dot = strrchr(inner, '.');
    long long step = -1;
    if (dot && !strcmp(dot, ".old")) {
        *dot = 0;
        step = checkpoint_step(inner);
    }
    free(inner);
    return step;
}

static int restore_replaced(const char *folder)
{
    DIR *dir = opendir(folder);
    int result = 0;
    for (const struct dirent *e; dir && !result && (e = readdir(dir));) {
        long long step = replaced_step(e->d_name);
        if (step < 0)
            continue;
        char *old = app_text("%s/%s", folder, e->d_name);
        char *target = app_text("%s/checkpoint-%lld", folder, step);
        result = file_exists(target) ? folder_remove(old) : rename(old, target);
        free(target);
        free(old);
    }
    if (dir)
        closedir(dir);
    return result;
}

int output_prepare(train_options *o, const config *cfg)
{
    bool fresh = !file_exists(o->output_dir);
    int rc = fresh ? APP_OK : output_lock(cfg, o->output_dir);
    if (rc == APP_OK && !fresh && restore_replaced(o->output_dir))
        rc =
            config_fail(cfg, "output_dir", "cannot put a checkpoint of %s back: %m", o->output_dir);
    if (rc == APP_OK && o->do_train)
        rc = find_resume(o, cfg);
    if (rc != APP_OK)
        return rc;
    if (folder_make(o->output_dir))
        return config_fail(cfg, "output_dir", "cannot create %s: %m", o->output_dir);
    if (folder_probe(o->output_dir))
        return config_fail(cfg, "output_dir", "cannot write into %s: %m", o->output_dir);
    if (fresh)
        rmdir(o->output_dir); /* made again when there is something to put into it */
    return APP_OK;
}

static uint64_t mix(uint64_t hash, const int32_t *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ (uint32_t)numbers[i]) * 0x100000001b3;
    return hash;
}

char *checkpoint_data_hash(const kt_dataset *dataset)
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

static json_t *load_json(train_run *run, const char *name, int *rc)
{
    json_error_t error = {.line = 0};
    size_t size;
    char *path = app_text("%s/%s", run->options.resume, name), *text = file_read(path, &size);
    json_t *json = text ? json_read(text, size, &error) : NULL;
    if (!text)
        *rc = config_fail(run->cfg, "resume_from_checkpoint", "cannot read %s: %m", path);
    else if (!json_is_object(json))
        *rc = config_fail(run->cfg, "resume_from_checkpoint", "%s:%d: %s", path, error.line,
                          json ? "expected an object" : error.text);
    free(text);
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
    char *now = checkpoint_data_hash(run->dataset);
    bool same_data = then && !strcmp(then, now);
    free(now);
    return same_data ? APP_OK
                     : config_fail(run->cfg, "dataset",
                                   "its tokens are not those that the checkpoint %s was made with; "
                                   "use the same data, template and cutoff_len",
                                   o->resume);
}

/* Is each number there that a run goes on from? */
static bool is_state(const json_t *json)
{
    static const char *const counts[] = {"step", "tokens", "padded_tokens", "last_logged"};
    bool ok = json_is_number(json_object_get(json, "loss_total")) &&
              json_is_number(json_object_get(json, "loss_window"));
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const json_t *count = json_object_get(json, counts[i]);
        ok = ok && json_is_integer(count) && json_integer_value(count) >= 0;
    }
    return ok && whole_number(json, "step") &&
           json_is_boolean(json_object_get(json, "unevaluated")) &&
           whole_number(json, "last_logged") <= whole_number(json, "step");
}

static int read_state(train_run *run, const json_t *json, json_t *trainer)
{
    train_state *s = &run->state;
    json_t *history = json_object_get(trainer, "log_history");
    if (!json_is_array(history) || !is_state(json))
        return config_fail(run->cfg, "resume_from_checkpoint",
                           "%s/%s is not what kt train writes; go on from another checkpoint",
                           run->options.resume,
                           json_is_array(history) ? RECORD : "trainer_state.json");
    s->step = whole_number(json, "step");
    s->tokens = whole_number(json, "tokens");
    s->padded_tokens = whole_number(json, "padded_tokens");
    s->loss_total = json_number_value(json_object_get(json, "loss_total"));
    s->loss_window = json_number_value(json_object_get(json, "loss_window"));
    s->last_logged = whole_number(json, "last_logged");
    s->unevaluated = run->evaluation && json_is_true(json_object_get(json, "unevaluated"));
    if (s->step > run->plan.total_steps)
        return config_fail(run->cfg, "resume_from_checkpoint",
                           "%s is at step %llu, beyond the run's last step %llu",
                           run->options.resume, (unsigned long long)s->step,
                           (unsigned long long)run->plan.total_steps);
    json_array_extend(s->history, history);
    return APP_OK;
}

/* Checkpoints of older versions tell nothing. */
static int read_sharing(train_run *run, const json_t *json)
{
    const char *record = json_string_value(json_object_get(json, "experts_sharing"));
    if (!record || kt_executor_set_sharing(run->session.executor, record) == KT_OK)
        return APP_OK;
    return config_fail(run->cfg, "resume_from_checkpoint", "%s/" RECORD ": %s", run->options.resume,
                       kt_last_error(run->session.ctx));
}

int checkpoint_read(train_run *run)
{
    int rc = APP_OK;
    json_t *json = load_json(run, RECORD, &rc);
    json_t *trainer = rc == APP_OK ? load_json(run, "trainer_state.json", &rc) : NULL;
    if (rc == APP_OK)
        rc = check_same(run, json);
    if (rc == APP_OK)
        rc = read_state(run, json, trainer);
    if (rc == APP_OK)
        rc = read_sharing(run, json);
    json_decref(trainer);
    json_decref(json);
    return rc;
}

int output_load_checkpoint(train_run *run)
{
    int rc = checkpoint_read(run);
    if (rc != APP_OK)
        return rc;
    char *path = app_text("%s/optimizer.zst", run->options.resume);
    if (kt_optimizer_load(run->optimizer, path) != KT_OK)
        rc = config_fail(run->cfg, "resume_from_checkpoint", "%s", kt_last_error(run->session.ctx));
    free(path);
    run->saved_step = run->state.step;
    run->saved = app_copy(run->options.resume);
    return rc;
}
