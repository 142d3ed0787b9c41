/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "convert/converter.h"
#include "core/context.h"
#include "core/memory.h"
#include "formats/mapped_file.h"
#include "model/quantization.h"

static const char single_name[] = "model.safetensors";

void kt_convert_options_init(kt_convert_options *options, size_t size)
{
    kt_options_init(options, size, &(kt_convert_options){.to = KT_DTYPE_BF16}, sizeof *options);
}

static kt_status check_options(kt_context *ctx, const kt_convert_options *o)
{
    if (o->to != KT_DTYPE_BF16 && o->to != KT_DTYPE_F32 && !kt_scale_suffix(o->to))
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_convert_options.to is %d (%s); it can be BF16, F32, F8_E4M3, I8 or I4",
                       o->to, kt_dtype_name(o->to));
    if (o->experts_only != 0 && o->experts_only != 1)
        return kt_fail(ctx, KT_ERROR_INVALID_ARGUMENT,
                       "kt_convert_options.experts_only is %d, not 0 or 1", o->experts_only);
    return KT_OK;
}

/* Copied and converted matrices of one dtype share the sizes in quantization_config. */
static kt_status check_source(const struct kt_converter *c)
{
    const struct kt_quantization *q = &c->model->config.quantization;
    const char *file = c->model->checkpoint->files[0].path;
    size_t length = strlen(file);
    bool other = c->to == KT_DTYPE_F8_E4M3
                     ? q->block_rows &&
                           (q->block_rows != KT_CONVERT_BLOCK || q->block_cols != KT_CONVERT_BLOCK)
                     : c->to == KT_DTYPE_I4 && q->group_size && q->group_size != KT_CONVERT_BLOCK;
    if (length > 5 && strcmp(file + length - 5, ".gguf") == 0)
        return kt_fail(c->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: is a GGUF file; only safetensors checkpoints can be converted",
                       c->model->path);
    if (other)
        return kt_fail(c->ctx, KT_ERROR_UNSUPPORTED,
                       "%s: config.json's quantization_config has other sizes than %d; convert the "
                       "checkpoint to BF16 first",
                       c->model->path, KT_CONVERT_BLOCK);
    return KT_OK;
}

struct totals {
    json_t *weight_map; /* NULL = none */
    uint64_t size;      /* of all tensors */
    uint64_t missing;   /* bytes of files that are not whole yet */
    bool single;        /* one file that needs no index */
};

static kt_status add_shard(struct kt_converter *c, const struct kt_convert_shard *s,
                           struct totals *totals)
{
    bool whole = false;
    c->total += s->source_size;
    totals->size += s->size - s->header_size;
    if (strcmp(s->name, single_name) == 0)
        totals->single = true;
    for (size_t i = 0; i < s->num; i++)
        if (json_object_set_new(totals->weight_map, s->entries[i].to.name, json_string(s->name)) !=
            0)
            return kt_fail_memory(c->ctx, 0, "the index of shards");
    if (c->folder >= 0)
        KT_TRY(kt_convert_is_whole(c, s, &whole));
    if (s->num && !whole)
        totals->missing += s->size;
    return KT_OK;
}

/* Looks at every tensor before anything is written. */
static kt_status plan(struct kt_converter *c, struct totals *totals)
{
    c->total = c->converted = 0;
    *totals = (struct totals){.weight_map = json_object()};
    for (size_t i = 0; i < c->model->checkpoint->num_files; i++) {
        struct kt_convert_shard shard;
        kt_status status = kt_convert_plan_shard(c, i, &shard);
        if (status == KT_OK)
            status = add_shard(c, &shard, totals);
        kt_convert_free_shard(&shard);
        KT_TRY(status);
    }
    if (!c->converted)
        return kt_fail(c->ctx, KT_ERROR_INVALID_ARGUMENT,
                       "%s: there is nothing to convert: its %s are %s already", c->model->path,
                       c->experts_only ? "routed experts" : "linears", kt_dtype_name(c->to));
    return KT_OK;
}

/* Shards that an earlier run finished are not told one by one: a host that measures the speed of
 * what it is told would take them for work of this one. */
static kt_status write_shards(struct kt_converter *c)
{
    uint64_t before = 0;
    size_t num = c->model->checkpoint->num_files;
    for (size_t i = 0; i < num; i++) {
        struct kt_convert_shard shard;
        bool whole = false;
        kt_status status = kt_convert_plan_shard(c, i, &shard);
        if (status == KT_OK)
            status = kt_convert_is_whole(c, &shard, &whole);
        if (status == KT_OK && shard.num && !whole)
            status = kt_convert_write_shard(c, &shard);
        c->done = before += shard.source_size;
        kt_convert_free_shard(&shard);
        KT_TRY(status);
        if (!whole || i + 1 == num)
            kt_progress(c->ctx, "converting", c->done, c->total);
    }
    return KT_OK;
}

static kt_status write_all(struct kt_converter *c, const struct totals *totals)
{
    KT_TRY(write_shards(c));
    KT_TRY(kt_convert_copy_files(c));
    if (!totals->single)
        KT_TRY(kt_convert_write_index(c, totals->weight_map, totals->size));
    KT_TRY(kt_convert_write_config(c));
    return kt_convert_finish_folder(c);
}

/* Nothing is written before the whole conversion is known to be possible. */
static kt_status convert(struct kt_converter *c)
{
    struct totals totals = {0};
    KT_TRY(check_source(c));
    kt_status status = plan(c, &totals);
    json_decref(totals.weight_map);
    KT_TRY(status);
    status = kt_convert_open_folder(c);
    totals.weight_map = NULL;
    if (status == KT_OK)
        status = plan(c, &totals);
    if (status == KT_OK)
        status = kt_convert_check_space(c, totals.missing);
    if (status == KT_OK)
        status = kt_convert_allocate(c);
    bool undo = status != KT_OK;
    if (status == KT_OK)
        status = write_all(c, &totals);
    json_decref(totals.weight_map);
    kt_convert_release(c);
    kt_convert_close_folder(c, undo);
    return status;
}

kt_status kt_convert(kt_context *ctx, const char *source, const char *target,
                     const kt_convert_options *options)
{
    kt_convert_options o;
    kt_model_options load;
    KT_ENTER_CONTEXT(ctx);
    kt_convert_options_init(&o, sizeof o);
    kt_model_options_init(&load, sizeof load);
    load.check_finite = 0; /* all numbers are looked at as they are read */
    KT_TRY(kt_check_given(ctx, source, "the folder of a checkpoint"));
    KT_TRY(kt_check_given(ctx, target, "the folder to write into"));
    KT_TRY(kt_options_copy(ctx, &o, options, KT_SIZED(kt_convert_options)));
    KT_TRY(check_options(ctx, &o));
    struct kt_converter c = {
        .ctx = ctx, .to = o.to, .experts_only = o.experts_only, .target = target, .folder = -1};
    KT_TRY(kt_model_load(ctx, source, &load, &c.model));
    kt_status status = convert(&c);
    kt_model_free(c.model);
    return status;
}
