/* SPDX-License-Identifier: Apache-2.0 */
/* A shard that is truncated while a model is in use is an error that names it, wherever the model
 * is used, and the process lives on. */
#include <kt/convert.h>
#include <kt/generator.h>
#include <kt/rule.h>

#include <fcntl.h>
#include <sys/mman.h>

#include "executor/read_ahead.h"
#include "fixture.h"
#include "golden_case.h"
#include "main.h"

static const char *const files[] = {"config.json", "model.safetensors.index.json",
                                    "model-00001-of-00003.safetensors",
                                    "model-00002-of-00003.safetensors",
                                    "model-00003-of-00003.safetensors"}; /* the last is not used */

static kt_model *model;
static kt_lora *lora;
static kt_executor *executor;
static kt_batch *batch;

static void copy_file(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/cases/v3/model/%s", KT_REFERENCE_DIR, name);
    FILE *from = fopen(path, "rb");
    ck_assert_ptr_nonnull(from);
    char *data = malloc(1 << 20);
    size_t size = fread(data, 1, 1 << 20, from);
    ck_assert_int_eq(fclose(from), 0);
    fixture_write(name, data, size);
    free(data);
}

static void open_on(const char *device)
{
    static const int32_t ids[] = {2, 3, 5, 7, 11, 13};
    kt_executor_options options;
    kt_rule *rule;
    kt_executor_options_init(&options, sizeof options);
    ck_assert_int_eq(kt_rule_create(fixture_context, &rule), KT_OK);
    ck_assert_int_eq(kt_rule_add(rule, ".", device, NULL), KT_OK);
    options.rule = rule;
    ck_assert_int_eq(kt_model_load(fixture_context, fixture_folder, NULL, &model), KT_OK);
    ck_assert_int_eq(kt_lora_create(model, NULL, &lora), KT_OK);
    ck_assert_int_eq(kt_executor_create(model, lora, &options, &executor), KT_OK);
    ck_assert_int_eq(kt_batch_create(fixture_context, &batch), KT_OK);
    ck_assert_int_eq(kt_batch_add(batch, ids, ids, 6), KT_OK);
    kt_rule_free(rule);
}

static void setup(void)
{
    fixture_setup();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        copy_file(files[i]);
}

static void close_all(void)
{
    kt_batch_free(batch);
    kt_executor_free(executor);
    kt_lora_free(lora);
    kt_model_free(model);
}

static void teardown(void)
{
    close_all();
    fixture_teardown();
}

static const char *const devices[] = {"cpu", "cpu-far"};

static void expect_truncated(kt_status status, const char *file)
{
    ck_assert_int_eq(status, KT_ERROR_IO);
    ck_assert_msg(strstr(kt_last_error(fixture_context), file) &&
                      strstr(kt_last_error(fixture_context), "truncated"),
                  "%s", kt_last_error(fixture_context));
}

START_TEST(a_truncated_shard_ends_a_step)
{
    const char *shard = files[2 + _i / 2];
    open_on(devices[_i % 2]);
    ck_assert_int_eq(kt_executor_forward(executor, batch, KT_FORWARD_TRAIN, NULL), KT_OK);
    ck_assert_int_eq(truncate(fixture_path(shard), 4096), 0);
    expect_truncated(kt_executor_backward(executor, NULL), shard);
    expect_truncated(kt_executor_forward(executor, batch, KT_FORWARD_EVAL, NULL), shard);
    copy_file(shard); /* another file of that name: not the one that is mapped */
    expect_truncated(kt_executor_forward(executor, batch, KT_FORWARD_EVAL, NULL), shard);
}
END_TEST

static const char *victim;

static void truncate_later(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)user, (void)what, (void)total;
    if (done == 1)
        ck_assert_int_eq(truncate(victim, 4096), 0);
}

START_TEST(a_shard_that_is_truncated_during_a_step_ends_it)
{
    victim = fixture_path(files[3]);
    open_on("cpu"); /* cpu-far reads the file late, behind the check */
    fixture_context->options.progress = truncate_later;
    expect_truncated(kt_executor_forward(executor, batch, KT_FORWARD_TRAIN, NULL), files[3]);
    ck_assert_int_eq(kt_executor_backward(executor, NULL), KT_ERROR_STATE);
}
END_TEST

START_TEST(a_truncated_shard_ends_a_prompt)
{
    static const int32_t ids[] = {2, 3, 5, 7};
    kt_generator *g;
    int32_t token;
    open_on(devices[_i]);
    ck_assert_int_eq(kt_generator_create(executor, NULL, &g), KT_OK);
    ck_assert_int_eq(kt_generator_prompt(g, ids, 4), KT_OK);
    ck_assert_int_eq(kt_generator_next(g, &token), KT_OK);
    ck_assert_int_eq(truncate(fixture_path(files[3]), 4096), 0);
    expect_truncated(kt_generator_next(g, &token), files[3]);
    kt_generator_free(g);
}
END_TEST

START_TEST(a_truncated_shard_is_no_sound_model)
{
    open_on("cpu");
    ck_assert_int_eq(kt_model_check_finite(model), KT_OK);
    ck_assert_int_eq(truncate(fixture_path(files[3]), 4096), 0);
    expect_truncated(kt_model_check_finite(model), files[3]);
}
END_TEST

/** What a step and some tokens give: log-probabilities, the loss of a second step, tokens. */
struct results {
    float logprobs[6];
    double loss;
    int32_t tokens[8];
};

static struct results run(const char *device, uint64_t memory)
{
    static const int32_t prompt[] = {2, 3, 5};
    struct results r = {0};
    kt_loss loss = {.size = sizeof loss};
    kt_optimizer *optimizer;
    kt_generator *g;
    fixture_context->limits.memory = memory;
    open_on(device);
    ck_assert_int_eq(kt_optimizer_create(lora, NULL, &optimizer), KT_OK);
    ck_assert_int_eq(kt_executor_forward(executor, batch, KT_FORWARD_TRAIN, &loss), KT_OK);
    memcpy(r.logprobs, kt_executor_logprobs(executor), sizeof r.logprobs);
    ck_assert_int_eq(kt_executor_backward(executor, NULL), KT_OK);
    ck_assert_int_eq(kt_optimizer_step(optimizer, 0.1, NULL), KT_OK);
    ck_assert_int_eq(kt_executor_forward(executor, batch, KT_FORWARD_EVAL, &loss), KT_OK);
    r.loss = loss.loss;
    ck_assert_int_eq(kt_generator_create(executor, NULL, &g), KT_OK);
    ck_assert_int_eq(kt_generator_prompt(g, prompt, 3), KT_OK);
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(kt_generator_next(g, &r.tokens[i]), KT_OK);
    kt_generator_free(g);
    kt_optimizer_free(optimizer);
    return r;
}

START_TEST(a_window_changes_no_bit)
{
    struct results whole = run(devices[_i], UINT64_MAX);
    close_all();
    struct results window = run(devices[_i], 1); /* no unit but the one in use */
    ck_assert_mem_eq(&window, &whole, sizeof whole);
}
END_TEST

/** Pages of a mapped file that are in memory. */
static size_t count_resident(const char *map, size_t bytes)
{
    static unsigned char pages[1 << 14];
    size_t num = bytes / 4096, resident = 0;
    ck_assert_int_eq(mincore((void *)(uintptr_t)map, bytes, pages), 0);
    for (size_t i = 0; i < num; i++)
        resident += pages[i] & 1;
    return resident;
}

START_TEST(wishes_bring_pages_into_memory)
{
    enum { BYTES = 32 << 20 };
    struct kt_read_ahead *reader;
    _Atomic bool resident = false;
    char *zeros = calloc(1, BYTES);
    fixture_write("pages", zeros, BYTES);
    int fd = open(fixture_path("pages"), O_RDONLY);
    ck_assert_int_ge(fd, 0);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    const char *map = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    struct kt_range ranges[] = {{map + 100, map + BYTES / 2}, {map + BYTES / 2, map + BYTES}};
    ck_assert_int_eq(kt_read_ahead_create(fixture_context, &reader), KT_OK);
    for (int i = 0; i < 1000 && count_resident(map, BYTES) < BYTES / 4096; i++) {
        kt_read_ahead_want(reader, ranges, 2, true, &resident);
        usleep(10000);
    }
    ck_assert_uint_eq(count_resident(map, BYTES), BYTES / 4096);
    for (int i = 0; i < 1000 && !resident; i++) {
        kt_read_ahead_want(reader, ranges, 2, true, &resident);
        usleep(10000);
    }
    ck_assert(resident);
    kt_read_ahead_free(reader);
    munmap((void *)(uintptr_t)map, BYTES);
    close(fd);
    free(zeros);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("supply", .setup = setup, .teardown = teardown, .timeout = 30),
        LOOP(a_truncated_shard_ends_a_step, 4),
        TEST(a_shard_that_is_truncated_during_a_step_ends_it),
        LOOP(a_truncated_shard_ends_a_prompt, 2),
        TEST(a_truncated_shard_is_no_sound_model),
        LOOP(a_window_changes_no_bit, 2),
        TEST(wishes_bring_pages_into_memory),
    };
    return RUN_TESTS("supply", tests);
}
