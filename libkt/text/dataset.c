/* SPDX-License-Identifier: Apache-2.0 */
#include "text/dataset.h"

#include <math.h>

#include "core/context.h"
#include "core/memory.h"
#include "core/random.h"
#include "formats/file.h"

/* Dropped entries that are named one by one in the log. */
#define MAX_NAMED 5

struct kt_dataset {
    KT_HANDLE;
    struct kt_ids ids, labels;       /* while it is read */
    int32_t *kept_ids, *kept_labels; /* then */
    /* Every entry that was read, those dropped included: LLaMA-Factory splits before it drops. */
    struct row {
        size_t begin, length;
        bool dropped;
    } * rows;
    size_t num_rows, rows_capacity;
    size_t *examples; /* rows that were not dropped */
    size_t num_examples;
};

struct loader {
    kt_context *ctx;
    const kt_dataset_options *options;
    struct kt_chat chat;
    kt_dataset *out;
    char *folder_info; /* path of dataset_info.json */
    json_t *info;
};

void kt_dataset_options_init(kt_dataset_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_dataset_options){.dataset_dir = "data", .cutoff_len = 2048},
                    sizeof *options);
}

static void destroy(void *handle)
{
    kt_dataset *d = handle;
    free(d->ids.data);
    free(d->labels.data);
    kt_buffer_free(d->ctx, d->kept_ids);
    kt_buffer_free(d->ctx, d->kept_labels);
    free(d->rows);
    free(d->examples);
}

void kt_dataset_free(kt_dataset *dataset)
{
    kt_handle_free(dataset);
}

static bool has_target(const struct kt_ids *labels, size_t begin)
{
    for (size_t i = begin + 1; i < labels->count; i++)
        if (labels->data[i] != KT_IGNORE_LABEL)
            return true;
    return false;
}

static kt_status add_row(struct loader *l, const struct kt_conversation *conversation, bool dropped,
                         size_t *idle)
{
    kt_dataset *d = l->out;
    struct row row = {d->ids.count, 0, dropped};
    if (!row.dropped)
        KT_TRY(kt_dataset_encode(&l->chat, l->options, conversation, &d->ids, &d->labels));
    *idle += !row.dropped && !has_target(&d->labels, row.begin);
    row.length = d->ids.count - row.begin;
    if (!kt_grow((void **)&d->rows, &d->rows_capacity, d->num_rows + 1, sizeof row))
        return kt_fail_memory(l->ctx, sizeof row, "a dataset");
    d->rows[d->num_rows++] = row;
    return KT_OK;
}

static kt_status add_entry(struct loader *l, const struct kt_convert *convert, const json_t *entry,
                           size_t number, size_t *dropped, size_t *idle)
{
    struct kt_conversation conversation = {0};
    const char *why;
    kt_status status = kt_dataset_convert(convert, entry, number, &conversation, &why);
    if (status == KT_OK)
        status = add_row(l, &conversation, why != NULL, idle);
    kt_conversation_free(&conversation);
    if (status == KT_OK && why && (*dropped)++ < MAX_NAMED)
        kt_log(l->ctx, KT_LOG_WARNING, "%s: entry %zu is left out: %s", convert->info->path, number,
               why);
    return status;
}

static kt_status add_entries(struct loader *l, const struct kt_dataset_info *info,
                             const json_t *entries)
{
    struct kt_convert convert = {l->ctx, info, l->options->name, l->options->author};
    size_t count = json_array_size(entries), dropped = 0, idle = 0;
    if (l->options->max_samples > 0 && (uint64_t)l->options->max_samples < count)
        count = (size_t)l->options->max_samples;
    for (size_t i = 0; i < count; i++) {
        if (i % 1024 == 0) {
            KT_TRY(kt_check_cancel(l->ctx));
            kt_progress(l->ctx, "tokenizing", i, count);
        }
        KT_TRY(add_entry(l, &convert, json_array_get(entries, i), i + 1, &dropped, &idle));
    }
    kt_progress(l->ctx, "tokenizing", count, count);
    if (dropped + idle == count)
        return kt_fail(l->ctx, KT_ERROR_FORMAT,
                       "%s: none of the %zu entries can be learned from; give each a prompt and a "
                       "response, and a cutoff_len that leaves room for both",
                       info->path, count);
    if (idle)
        kt_log(l->ctx, KT_LOG_WARNING,
               "%s: %zu of %zu entries have no token to learn within cutoff_len; they change no "
               "weight",
               info->path, idle, count);
    if (dropped)
        kt_log(l->ctx, KT_LOG_WARNING, "%s: %zu of %zu entries are left out", info->path, dropped,
               count);
    return KT_OK;
}

static kt_status add_dataset(struct loader *l, const char *name)
{
    struct kt_dataset_info info;
    json_t *entries = NULL;
    KT_TRY(kt_dataset_info_read(l->ctx, l->options->dataset_dir, l->folder_info, l->info, name,
                                &info));
    kt_status status = kt_dataset_read(l->ctx, info.path, &entries);
    if (status == KT_OK)
        status = add_entries(l, &info, entries);
    json_decref(entries);
    free(info.path);
    return status;
}

/* A name that comes again adds nothing, as in LLaMA-Factory. */
static kt_status add_once(struct loader *l, const char *name, json_t *seen)
{
    if (json_object_get(seen, name))
        return KT_OK;
    if (json_object_set_new_nocheck(seen, name, json_true()) != 0)
        return kt_fail_memory(l->ctx, strlen(name), "the names of datasets");
    return add_dataset(l, name);
}

static kt_status add_all(struct loader *l)
{
    char *names = strdup(l->options->dataset), *rest = names, *name;
    json_t *seen = json_object();
    kt_status status = names && seen ? KT_OK : kt_fail_memory(l->ctx, 0, "a dataset");
    size_t count = 0;
    while (status == KT_OK && (name = strsep(&rest, ",")) != NULL) {
        name += strspn(name, " \t");
        for (size_t n = strlen(name); n && (name[n - 1] == ' ' || name[n - 1] == '\t'); n--)
            name[n - 1] = 0;
        if (!*name)
            continue;
        status = add_once(l, name, seen);
        count++;
    }
    json_decref(seen);
    free(names);
    if (status == KT_OK && count == 0)
        status = kt_fail(l->ctx, KT_ERROR_INVALID_ARGUMENT, "dataset names no dataset");
    return status;
}

static kt_status check_options(kt_context *ctx, const kt_dataset_options *o)
{
    if (o->cutoff_len < 1)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT, "cutoff_len is %d; it must be at least 1",
                       o->cutoff_len);
    if (o->max_samples < 0)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "max_samples is %lld; it must be at least 0 (all)",
                       (long long)o->max_samples);
    if (o->train_on_prompt && o->mask_history)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "train_on_prompt and mask_history contradict each other; set one of them");
    if (!o->dataset || !o->dataset_dir || !o->template_name)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "dataset, dataset_dir and template must be given");
    return KT_OK;
}

static kt_status load(struct loader *l, const kt_tokenizer *tokenizer)
{
    const kt_dataset_options *o = l->options;
    KT_TRY(kt_chat_open(tokenizer, o->template_name, o->thinking, &l->chat));
    if (o->train_on_prompt && l->chat.template->efficient_eos)
        return kt_fail(l->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "template %s does not support train_on_prompt", o->template_name);
    l->folder_info = kt_path_join(o->dataset_dir, "dataset_info.json");
    if (!l->folder_info)
        return kt_fail_memory(l->ctx, 0, "a dataset");
    KT_TRY(kt_json_load(l->ctx, l->folder_info, KT_JSON_CONFIG_MAX, &l->info));
    return add_all(l);
}

/* Makes the list of rows that were not dropped. */
static kt_status list_examples(kt_dataset *d)
{
    size_t *examples = malloc((d->num_rows + 1) * sizeof *examples);
    if (!examples)
        return kt_fail_memory(d->ctx, d->num_rows * sizeof *examples, "a dataset");
    d->examples = examples;
    for (size_t i = 0; i < d->num_rows; i++)
        if (!d->rows[i].dropped)
            examples[d->num_examples++] = i;
    return KT_OK;
}

/* Into memory that counts for the limit. */
static kt_status keep(kt_context *ctx, struct kt_ids *ids, int32_t **kept)
{
    void *buffer;
    KT_TRY(kt_buffer_alloc(ctx, ids->count, sizeof **kept, "the tokens of a dataset", &buffer));
    if (ids->count)
        memcpy(buffer, ids->data, ids->count * sizeof **kept);
    free(ids->data);
    *ids = (struct kt_ids){0};
    *kept = buffer;
    return KT_OK;
}

static kt_status finish(kt_dataset *d)
{
    KT_TRY(list_examples(d));
    KT_TRY(keep(d->ctx, &d->ids, &d->kept_ids));
    return keep(d->ctx, &d->labels, &d->kept_labels);
}

kt_status kt_dataset_load(kt_context *ctx, const kt_tokenizer *tokenizer,
                          const kt_dataset_options *given, kt_dataset **out)
{
    kt_dataset_options options;
    kt_dataset *d;
    KT_ENTER_CONTEXT_OUT(ctx, out);
    KT_TRY(kt_check_given(ctx, tokenizer, "tokenizer"));
    if (tokenizer->ctx != ctx)
        return kt_fail(ctx, KT_ERROR_MISMATCH, "the tokenizer was made from another context");
    kt_dataset_options_init(&options, sizeof options);
    KT_TRY(kt_options_copy(ctx, &options, given, KT_SIZED(kt_dataset_options)));
    KT_TRY(check_options(ctx, &options));
    KT_TRY(kt_handle_new(ctx, sizeof *d, destroy, "a dataset", (void **)&d));
    struct loader l = {.ctx = ctx, .options = &options, .out = d};
    kt_status status = load(&l, tokenizer);
    if (status == KT_OK)
        status = finish(d);
    kt_chat_close(&l.chat);
    json_decref(l.info);
    free(l.folder_info);
    if (status != KT_OK)
        kt_dataset_free(d);
    else
        *out = d;
    return status;
}

size_t kt_dataset_num_examples(const kt_dataset *d)
{
    return d ? d->num_examples : 0;
}

kt_status kt_dataset_get(const kt_dataset *d, size_t index, kt_example *example)
{
    KT_TRY(kt_check_handle(d, __func__, "dataset"));
    if (index >= d->num_examples)
        return kt_fail(d->ctx, KT_ERROR_INVALID_ARGUMENT, "example %zu of %zu does not exist",
                       index, d->num_examples);
    const struct row *row = &d->rows[d->examples[index]];
    kt_example found = {.input_ids = d->kept_ids + row->begin,
                        .labels = d->kept_labels + row->begin,
                        .length = row->length};
    return kt_give(d->ctx, example, &found, KT_SIZED(kt_example));
}

static kt_status num_evaluation(const kt_dataset *d, double val_size, size_t *count)
{
    double wanted = val_size < 1 ? ceil(val_size * (double)d->num_rows) : floor(val_size);
    if (!(val_size > 0) || !(wanted < (double)d->num_rows))
        return kt_fail(d->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "val_size is %g; with %zu examples it must be a fraction between 0 and 1 or "
                       "a number from 1 to %zu",
                       val_size, d->num_rows, d->num_rows ? d->num_rows - 1 : 0);
    *count = (size_t)wanted;
    return KT_OK;
}

/* A dataset of some rows of another; ids and labels are copied. */
static kt_status take_rows(const kt_dataset *from, const uint64_t *rows, size_t count,
                           kt_dataset *to)
{
    bool ok = kt_grow((void **)&to->rows, &to->rows_capacity, count, sizeof *to->rows);
    for (size_t i = 0; i < count && ok; i++) {
        struct row row = from->rows[rows[i]];
        ok = kt_ids_append(&to->ids, from->kept_ids + row.begin, row.length) &&
             kt_ids_append(&to->labels, from->kept_labels + row.begin, row.length);
        row.begin = to->ids.count - row.length;
        to->rows[to->num_rows++] = row;
    }
    return ok ? finish(to) : kt_fail_memory(from->ctx, count * sizeof *to->rows, "a dataset");
}

static kt_status split(const kt_dataset *d, size_t num_test, uint64_t seed, kt_dataset *train,
                       kt_dataset *test)
{
    uint64_t *order = malloc(d->num_rows * sizeof *order);
    if (!order)
        return kt_fail_memory(d->ctx, d->num_rows * sizeof *order, "a dataset");
    kt_numpy_permutation(seed, d->num_rows, order);
    kt_status status = take_rows(d, order, num_test, test);
    if (status == KT_OK)
        status = take_rows(d, order + num_test, d->num_rows - num_test, train);
    free(order);
    if (status == KT_OK && (!train->num_examples || !test->num_examples))
        status =
            kt_fail(d->ctx, KT_ERROR_FORMAT,
                    "val_size leaves no usable example to %s; the ones drawn were all left out",
                    train->num_examples ? "evaluate" : "train on");
    return status;
}

kt_status kt_dataset_split(kt_dataset *d, double val_size, uint64_t seed, kt_dataset **evaluation)
{
    size_t num_test = 0;
    kt_dataset *train = NULL, *test = NULL;
    KT_ENTER_OUT(d, "dataset", evaluation);
    KT_TRY(num_evaluation(d, val_size, &num_test));
    kt_status status = kt_handle_new(d->ctx, sizeof *d, destroy, "a dataset", (void **)&train);
    if (status == KT_OK)
        status = kt_handle_new(d->ctx, sizeof *d, destroy, "a dataset", (void **)&test);
    if (status == KT_OK)
        status = split(d, num_test, seed, train, test);
    if (status != KT_OK) {
        kt_dataset_free(train);
        kt_dataset_free(test);
        return status;
    }
    kt_dataset old = *d;
    *d = *train;
    *train = old;
    kt_dataset_free(train);
    *evaluation = test;
    return KT_OK;
}
