/* SPDX-License-Identifier: Apache-2.0 */
/* Sections of the file: "linears", a line for each attached linear that says what it is; "steps",
 * its 64-bit counters; and "first PATH" and "second PATH" for those that have been updated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "formats/zstd_file.h"
#include "model/adapter.h"
#include "train/optimizer.h"

static const char kind[] = "optimizer";

enum { VERSION = 1, NAME_SIZE = 256 };

static const char *linear_name(const kt_lora *lora, int32_t k)
{
    return lora->model->linears[lora->attached[k]].name;
}

/* "PATH RANK IN OUT\n" for every attached linear; malloc'ed, NULL when memory ran out. */
static char *describe(const kt_lora *lora, size_t *size)
{
    char *text = NULL;
    FILE *stream = open_memstream(&text, size);
    if (!stream)
        return NULL;
    for (int32_t k = 0; k < lora->num_attached; k++) {
        const struct kt_linear *linear = &lora->model->linears[lora->attached[k]];
        fprintf(stream, "%s %d %lld %lld\n", linear->name, lora->slots[linear->index].rank,
                (long long)linear->weight.cols, (long long)linear->weight.rows);
    }
    if (fclose(stream) == 0)
        return text;
    free(text);
    return NULL;
}

static kt_status write_sections(const kt_optimizer *opt, const char *file,
                                struct kt_section *sections, char (*names)[NAME_SIZE])
{
    const kt_lora *lora = opt->lora;
    size_t num = 2, size;
    char *text = describe(lora, &size);
    if (!text)
        return kt_fail_memory(lora->model->ctx, 4096, file);
    sections[0] = (struct kt_section){"linears", text, size};
    sections[1] =
        (struct kt_section){"steps", opt->steps, (uint64_t)lora->num_attached * sizeof *opt->steps};
    for (int32_t k = 0; k < lora->num_attached; k++) {
        uint64_t offset = kt_adapter_pair_offset(lora, k);
        uint64_t bytes = kt_adapter_pair_size(lora, k) * sizeof(float);
        if (opt->steps[k] == 0)
            continue;
        snprintf(names[num], NAME_SIZE, "first %s", linear_name(lora, k));
        sections[num] = (struct kt_section){names[num], opt->first + offset, bytes};
        num++;
        snprintf(names[num], NAME_SIZE, "second %s", linear_name(lora, k));
        sections[num] = (struct kt_section){names[num], opt->second + offset, bytes};
        num++;
    }
    kt_status status = kt_zstd_write(lora->model->ctx, file, kind, VERSION, sections, num);
    free(text);
    return status;
}

kt_status kt_optimizer_save(const kt_optimizer *opt, const char *file)
{
    KT_ENTER(opt, "optimizer");
    KT_TRY(kt_check_given(opt->ctx, file, "the file of an optimizer"));
    size_t most = 2 + 2 * (size_t)opt->lora->num_attached;
    struct kt_section *sections = calloc(most, sizeof *sections);
    char(*names)[NAME_SIZE] = calloc(most, sizeof *names);
    kt_status status = sections && names
                           ? write_sections(opt, file, sections, names)
                           : kt_fail_memory(opt->lora->model->ctx, most * NAME_SIZE, file);
    free(sections);
    free(names);
    return status;
}

/* Compares the file's "linears" with ours and names the first line that differs. */
static kt_status check_linears(const kt_optimizer *opt, const struct kt_zstd_file *state,
                               const char *file)
{
    kt_context *ctx = opt->lora->model->ctx;
    size_t size, same = 0, line = 0;
    uint64_t found_size = 0;
    char *text = describe(opt->lora, &size), *found = NULL;
    kt_zstd_has(state, "linears", &found_size);
    if (found_size <= ((uint64_t)1 << 30))
        found = calloc(1, found_size + 1);
    kt_status status = text && found ? kt_zstd_read(state, "linears", found, found_size)
                                     : kt_fail_memory(ctx, found_size, file);
    if (status == KT_OK && (found_size != size || memcmp(text, found, size) != 0)) {
        for (; text[same] && text[same] == found[same]; same++)
            if (text[same] == '\n')
                line = same + 1;
        status = kt_fail(ctx, KT_ERROR_MISMATCH,
                         "%s: this optimizer state belongs to another adapter: it has \"%.*s\" "
                         "where this adapter has \"%.*s\" (linear, rank, in, out)",
                         file, (int)strcspn(found + line, "\n"), found + line,
                         (int)strcspn(text + line, "\n"), text + line);
    }
    free(text);
    free(found);
    return status;
}

static kt_status read_moments(kt_optimizer *opt, const struct kt_zstd_file *state,
                              const uint64_t *steps)
{
    const kt_lora *lora = opt->lora;
    for (int32_t k = 0; k < lora->num_attached; k++) {
        char name[NAME_SIZE];
        uint64_t offset = kt_adapter_pair_offset(lora, k);
        uint64_t bytes = kt_adapter_pair_size(lora, k) * sizeof(float);
        if (steps[k] == 0)
            continue;
        snprintf(name, sizeof name, "first %s", linear_name(lora, k));
        KT_TRY(kt_zstd_read(state, name, opt->first + offset, bytes));
        snprintf(name, sizeof name, "second %s", linear_name(lora, k));
        KT_TRY(kt_zstd_read(state, name, opt->second + offset, bytes));
    }
    return KT_OK;
}

static kt_status read_state(kt_optimizer *opt, const struct kt_zstd_file *state, const char *file)
{
    uint64_t bytes = (uint64_t)opt->lora->num_attached * sizeof *opt->steps;
    KT_TRY(check_linears(opt, state, file));
    uint64_t *steps = malloc(bytes);
    if (!steps)
        return kt_fail_memory(opt->lora->model->ctx, bytes, file);
    memset(opt->steps, 0, bytes);
    kt_status status = kt_zstd_read(state, "steps", steps, bytes);
    if (status == KT_OK)
        status = read_moments(opt, state, steps);
    if (status == KT_OK)
        memcpy(opt->steps, steps, bytes);
    free(steps);
    return status;
}

kt_status kt_optimizer_load(kt_optimizer *opt, const char *file)
{
    struct kt_zstd_file *state;
    KT_ENTER(opt, "optimizer");
    KT_TRY(kt_check_given(opt->ctx, file, "the file of an optimizer"));
    KT_TRY(kt_zstd_open(opt->ctx, file, kind, VERSION, &state));
    kt_status status = read_state(opt, state, file);
    kt_zstd_close(state);
    return status;
}
