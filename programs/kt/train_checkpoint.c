/* SPDX-License-Identifier: Apache-2.0 */
/* Writing: the adapter and the checkpoints. */
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

static int failed(train_run *run, const char *path)
{
    return config_fail(run->cfg, "output_dir", "cannot write %s: %m", path);
}

/* What a killed run was writing. */
static int remove_unfinished(const char *folder)
{
    DIR *dir = opendir(folder);
    int result = dir ? 0 : -1;
    folder_clean(folder);
    for (const struct dirent *e; dir && !result && (e = readdir(dir));) {
        if (strncmp(e->d_name, "tmp-", 4) || checkpoint_step(e->d_name + 4) < 0)
            continue;
        char *path = app_text("%s/%s", folder, e->d_name);
        result = folder_remove(path);
        free(path);
    }
    if (dir)
        closedir(dir);
    return result;
}

/* In new memory; that of a GGUF file is the one it lies in. */
static char *model_folder(const char *model)
{
    struct stat st;
    const char *slash = strrchr(model, '/');
    if (stat(model, &st) || !S_ISREG(st.st_mode))
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
        if (file_exists(from) && file_copy(from, to))
            rc = config_fail(run->cfg, "output_dir", "cannot copy %s to %s: %m", from, to);
        free(from);
        free(to);
    }
    free(model);
    return rc;
}

/* Size and hash of each part, so that none can be taken for that of another checkpoint. NULL with
 * errno set when one cannot be read. */
static json_t *describe_parts(const char *folder)
{
    json_t *files = json_object();
    for (size_t i = 0; files && checkpoint_parts[i]; i++) {
        uint64_t size, hash;
        char *path = app_text("%s/%s", folder, checkpoint_parts[i]), text[20];
        if (file_hash(path, &size, &hash)) {
            json_decref(files);
            files = NULL;
        } else {
            snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
            json_object_set_new(files, checkpoint_parts[i],
                                json_pack("{sIss}", "bytes", (json_int_t)size, "hash", text));
        }
        free(path);
    }
    return files;
}

/* Written last, since it speaks of the other parts. */
static int save_training_state(train_run *run, const char *folder)
{
    const train_state *s = &run->state;
    const train_options *o = &run->options;
    json_t *files = describe_parts(folder);
    if (!files)
        return failed(run, folder);
    const char *sharing;
    if (kt_executor_get_sharing(run->session.executor, &sharing) != KT_OK) {
        json_decref(files);
        return app_fail("%s", kt_last_error(run->session.ctx));
    }
    char *hash = checkpoint_data_hash(run->dataset);
    json_t *json = json_pack(
        "{sIsIsIsfsfsIsbsIsssIsIsIsIsbssso}", "step", (json_int_t)s->step, "tokens",
        (json_int_t)s->tokens, "padded_tokens", (json_int_t)s->padded_tokens, "loss_total",
        s->loss_total, "loss_window", s->loss_window, "last_logged", (json_int_t)s->last_logged,
        "unevaluated", s->unevaluated, "num_examples", (json_int_t)run->plan.num_examples, "data",
        hash, "per_device_train_batch_size", (json_int_t)o->batch, "gradient_accumulation_steps",
        (json_int_t)o->accumulation, "seed", (json_int_t)o->seed, "data_seed",
        (json_int_t)o->data_seed, "disable_shuffling", o->disable_shuffling, "experts_sharing",
        sharing, "files", files);
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
    if (mkdir(folder, 0777)) /* never into one that is there already */
        return failed(run, folder);
    int rc = output_save_adapter(run, folder);
    if (rc == APP_OK && whole) {
        char *path = app_text("%s/optimizer.zst", folder);
        if (kt_optimizer_save(run->optimizer, path) != KT_OK)
            rc = config_fail(run->cfg, "output_dir", "%s", kt_last_error(run->session.ctx));
        free(path);
    }
    if (rc == APP_OK)
        rc = output_save_state(run, folder);
    return rc == APP_OK && whole ? save_training_state(run, folder) : rc;
}

/* For a file system that cannot exchange names. A kill between the two renames leaves
 * tmp-TARGET.old, which the next run puts back. */
static int replace_by_steps(const char *fresh, const char *target, const char *parent)
{
    char *old = app_text("%s/tmp-%s.old", parent, strrchr(target, '/') + 1);
    int result = folder_remove(old);
    if (!result)
        result = rename(target, old);
    if (!result)
        result = rename(fresh, target);
    if (!result)
        result = folder_sync(parent);
    if (!result)
        result = folder_remove(old);
    free(old);
    return result;
}

/* Puts the finished folder in place of an older one of the same name, which goes when the new one
 * is on the disk. */
static int replace_folder(const char *fresh, const char *target, const char *parent)
{
    if (!file_exists(target))
        return rename(fresh, target) ? -1 : folder_sync(parent);
    if (!renameat2(AT_FDCWD, fresh, AT_FDCWD, target, RENAME_EXCHANGE))
        return folder_sync(parent) ? -1 : folder_remove(fresh);
    return errno == EINVAL || errno == ENOSYS ? replace_by_steps(fresh, target, parent) : -1;
}

typedef struct found {
    struct timespec time;
    long long step;
    bool whole;
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

/* Those that can be seen; one that cannot stays. */
static size_t list_checkpoints(const char *folder, found **all)
{
    DIR *dir = opendir(folder);
    size_t num = 0;
    int problem = dir ? 0 : errno;
    *all = NULL;
    for (const struct dirent *e; dir && (errno = 0, e = readdir(dir));) {
        struct stat st;
        if (checkpoint_step(e->d_name) < 0)
            continue;
        if (fstatat(dirfd(dir), e->d_name, &st, 0)) {
            problem = errno;
            continue;
        }
        char *path = app_text("%s/%s", folder, e->d_name);
        *all = app_resize(*all, num + 1, sizeof **all);
        (*all)[num++] = (found){st.st_mtim, checkpoint_step(e->d_name), checkpoint_is_whole(path)};
        free(path);
    }
    problem = problem ? problem : errno;
    if (dir)
        closedir(dir);
    if (problem)
        app_warn("save_total_limit: cannot list %s: %s", folder, strerror(problem));
    if (num)
        qsort(*all, num, sizeof **all, older_first);
    return num;
}

/* By another name first, so that a kill leaves no torn checkpoint. That one cannot be removed is no
 * reason to stop; the next run tries again. */
static void remove_checkpoint(const char *folder, long long step)
{
    char *path = app_text("%s/checkpoint-%lld", folder, step);
    char *going = app_text("%s/tmp-checkpoint-%lld", folder, step);
    if (folder_remove(going) || rename(path, going) || folder_remove(going))
        app_warn("save_total_limit: cannot remove %s: %s", path, strerror(errno));
    free(going);
    free(path);
}

/* Removes the oldest checkpoints beyond save_total_limit, but never that of step `newest`, whatever
 * the clock says. One that training cannot go on from pushes none out that it can. */
static void rotate(const train_options *o, long long newest)
{
    found *all = NULL;
    size_t num = o->save_total_limit ? list_checkpoints(o->output_dir, &all) : 0;
    for (int whole = 0; whole < 2; whole++) {
        size_t kept = 0;
        for (size_t i = num; i-- > 0;)
            kept += all[i].whole == whole && all[i].step == newest;
        for (size_t i = num; i-- > 0;) {
            if (all[i].whole != whole || all[i].step == newest)
                continue;
            if (kept < o->save_total_limit)
                kept++;
            else
                remove_checkpoint(o->output_dir, all[i].step);
        }
    }
    free(all);
}

int output_make_folder(train_run *run)
{
    const char *folder = run->options.output_dir;
    if (folder_make(folder))
        return failed(run, folder);
    int rc = output_lock(run->cfg, folder);
    if (rc != APP_OK)
        return rc;
    if (remove_unfinished(folder))
        return failed(run, folder);
    if (run->options.resume) /* a kill may have come after a checkpoint and before its rotation */
        rotate(&run->options, (long long)run->state.step);
    return APP_OK;
}

int output_checkpoint(train_run *run, bool whole)
{
    const train_options *o = &run->options;
    unsigned long long step = run->state.step;
    char *fresh = app_text("%s/tmp-checkpoint-%llu", o->output_dir, step);
    char *target = app_text("%s/checkpoint-%llu", o->output_dir, step);
    if (checkpoint_is_whole(target)) /* the old one can be gone on from: so shall the new one */
        whole = true;
    int rc = folder_remove(fresh) ? failed(run, fresh) : fill_checkpoint(run, fresh, whole);
    if (rc == APP_OK && replace_folder(fresh, target, o->output_dir))
        rc = failed(run, target);
    if (rc != APP_OK)
        folder_remove(fresh);
    else
        rotate(o, (long long)step);
    if (rc == APP_OK && whole) {
        free(run->saved);
        run->saved = app_copy(target);
        run->saved_step = step;
        train_advise(run);
    }
    free(target);
    free(fresh);
    return rc;
}
