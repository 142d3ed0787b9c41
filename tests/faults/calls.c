/* SPDX-License-Identifier: Apache-2.0 */
/* Fails one call for memory or of IO after another, in a process each, those of other libraries
 * included, while libkt does something. Every call of libkt must end with a status that fits and a
 * sentence, leak nothing (with AddressSanitizer), and leave files that are whole.
 *
 *     calls REFERENCE KIND WALK [STEP [FIRST]]     every STEP-th one, from FIRST on
 *
 * KIND: see interpose.h. WALK: load, train, convert or chat. */
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <kt/kt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "interpose.h"

int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

#define TRY(call)                                                                                  \
    do {                                                                                           \
        kt_status try_ = (call);                                                                   \
        if (try_ != KT_OK)                                                                         \
            return try_;                                                                           \
    } while (0)

enum { STEPS = 5, SAVED_AT = 3, TOKENS = 9 };

static const char *reference;
static char folder[] = "/dev/shm/kt-faults-XXXXXX"; /* where syncing costs nothing */

static const char *in(const char *parent, const char *name)
{
    static char paths[4][4096];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", parent, name);
    return path;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void empty_folder(void)
{
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    mkdir(folder, 0777);
}

/* load: all that reads files. */
static kt_status use_dataset(kt_context *ctx, const kt_tokenizer *tokenizer)
{
    kt_dataset_options options;
    kt_dataset *dataset, *evaluation = NULL;
    kt_dataset_options_init(&options, sizeof options);
    options.dataset_dir = in(reference, "text/data");
    options.dataset = "en,zh,chat,think";
    options.template_name = "qwen3";
    options.cutoff_len = 256;
    TRY(kt_dataset_load(ctx, tokenizer, &options, &dataset));
    kt_status status = kt_dataset_split(dataset, 0.3, 1, &evaluation);
    kt_dataset_free(evaluation);
    kt_dataset_free(dataset);
    return status;
}

static kt_status use_tokenizer(kt_context *ctx, const char *name)
{
    static const char text[] = "Hello <|im_start|> e\xcc\x81\xcc\x96 \xe4\xbd\xa0 123";
    kt_tokenizer *tokenizer;
    int32_t *ids = NULL;
    char *back = NULL;
    size_t num, length;
    TRY(kt_tokenizer_load(ctx, in(reference, name), &tokenizer));
    kt_status status = kt_tokenizer_encode(tokenizer, text, strlen(text), 1, &ids, &num);
    if (status == KT_OK)
        status = kt_tokenizer_decode(tokenizer, ids, num, 0, &back, &length);
    if (status == KT_OK && num < 5)
        status = KT_ERROR_INTERNAL;
    if (status == KT_OK)
        status = use_dataset(ctx, tokenizer);
    kt_free(ids);
    kt_free(back);
    kt_tokenizer_free(tokenizer);
    return status;
}

static kt_status load_model(kt_context *ctx, const char *name)
{
    kt_model *model;
    TRY(kt_model_load(ctx, in(reference, name), NULL, &model));
    kt_model_free(model);
    return KT_OK;
}

static kt_status load(kt_context *ctx)
{
    kt_rule *rule;
    TRY(load_model(ctx, "cases/v3bf16/model"));
    TRY(load_model(ctx, "gguf/deepseek2.gguf"));
    TRY(use_tokenizer(ctx, "text/tiny"));
    TRY(use_tokenizer(ctx, "text/tiny_sp"));
    TRY(kt_rule_load(ctx, in(reference, "../../examples/kt_optimize_rules/cpu-only.yaml"), &rule));
    kt_rule_free(rule);
    return KT_OK;
}

/* train: five steps, begun again from files after three. */
struct training {
    kt_model *model;
    kt_lora *lora;
    kt_executor *executor;
    kt_optimizer *optimizer;
    kt_batch *batch;
    double loss; /* of the latest step */
};

static kt_status start(struct training *t)
{
    TRY(kt_executor_create(t->model, t->lora, NULL, &t->executor));
    return kt_optimizer_create(t->lora, NULL, &t->optimizer);
}

static void stop(struct training *t)
{
    kt_optimizer_free(t->optimizer);
    kt_executor_free(t->executor);
    kt_lora_free(t->lora);
    t->optimizer = NULL;
    t->executor = NULL;
    t->lora = NULL;
}

static kt_status step(struct training *t, uint64_t number)
{
    kt_loss loss = {.size = sizeof loss};
    TRY(kt_executor_set_step(t->executor, number));
    TRY(kt_executor_forward(t->executor, t->batch, KT_FORWARD_TRAIN, &loss));
    TRY(kt_executor_backward(t->executor, NULL));
    t->loss = loss.loss;
    return kt_optimizer_step(t->optimizer, 1e-3, NULL);
}

static kt_status save(const struct training *t)
{
    TRY(kt_optimizer_save(t->optimizer, in(folder, "optimizer.zst")));
    return kt_lora_save(t->lora, folder);
}

static kt_status resume(struct training *t)
{
    stop(t);
    TRY(kt_lora_load(t->model, folder, &t->lora));
    TRY(kt_lora_set_seed(t->lora, 7));
    TRY(start(t));
    return kt_optimizer_load(t->optimizer, in(folder, "optimizer.zst"));
}

static kt_status begin(kt_context *ctx, struct training *t)
{
    static const int32_t ids[TOKENS] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    kt_lora_options options;
    kt_lora_options_init(&options, sizeof options);
    options.rank = 2;
    options.target_experts = 1;
    options.dropout = 0.1f;
    options.seed = 7;
    TRY(kt_model_load(ctx, in(reference, "cases/v3bf16/model"), NULL, &t->model));
    TRY(kt_lora_create(t->model, &options, &t->lora));
    TRY(kt_batch_create(ctx, &t->batch));
    TRY(kt_batch_add(t->batch, ids, ids, TOKENS));
    TRY(kt_batch_add(t->batch, ids + 2, ids + 2, TOKENS / 2));
    TRY(kt_batch_add_padding(t->batch, 0, 4));
    return start(t);
}

static kt_status train_steps(kt_context *ctx, struct training *t)
{
    TRY(begin(ctx, t));
    for (uint64_t number = 0; number < STEPS; number++) {
        if (number == SAVED_AT) {
            TRY(save(t));
            TRY(resume(t));
        }
        TRY(step(t, number));
    }
    return save(t);
}

static double last_loss;
static uint64_t written, wanted_bytes; /* hashes; by the run without a fault */

static kt_status train(kt_context *ctx)
{
    struct training t = {0};
    kt_status status = train_steps(ctx, &t);
    if (status == KT_OK)
        last_loss = t.loss;
    stop(&t);
    kt_batch_free(t.batch);
    kt_model_free(t.model);
    return status;
}

static kt_status convert(kt_context *ctx)
{
    kt_convert_options options;
    kt_convert_options_init(&options, sizeof options);
    options.to = KT_DTYPE_I4;
    return kt_convert(ctx, in(reference, "cases/v2f16/model"), in(folder, "to"), &options);
}

static kt_status talk(kt_executor *executor, const int32_t *ids, size_t num, int32_t *token)
{
    kt_generator *generator;
    TRY(kt_generator_create(executor, NULL, &generator));
    kt_status status = kt_generator_prompt(generator, ids, num);
    for (int i = 0; i < 8 && status == KT_OK; i++)
        status = kt_generator_next(generator, token);
    kt_generator_free(generator);
    return status;
}

/* Its file says when things ran, so that no two are alike. */
static kt_status talk_traced(kt_context *ctx, kt_executor *executor, const int32_t *ids, size_t num,
                             int32_t *token)
{
    kt_trace_options options;
    kt_trace *trace;
    kt_trace_options_init(&options, sizeof options);
    options.path = in(folder, "trace.json");
    TRY(kt_trace_create(ctx, &options, &trace));
    kt_status status = talk(executor, ids, num, token);
    if (status == KT_OK)
        status = kt_trace_finish(trace);
    kt_trace_free(trace);
    remove(in(folder, "trace.json"));
    return status;
}

/* chat: a template, and some tokens of an adapter that is read. */
static kt_status chat_with(kt_context *ctx, const kt_tokenizer *tokenizer, kt_model *model)
{
    static const kt_message message = {
        .size = sizeof message, .role = "user", .content = "Who is ann?"};
    static const int32_t prompt[] = {3, 1, 4, 1, 5};
    int32_t *ids, stops[8], token;
    size_t num;
    char *text;
    kt_lora *lora;
    kt_executor *executor;
    TRY(kt_tokenizer_stop_ids(tokenizer, "qwen3", stops, 8, &num));
    TRY(kt_tokenizer_apply_template(tokenizer, "qwen3", &message, 1, &ids, &num));
    kt_free(ids);
    TRY(kt_lora_load(model, in(reference, "cases/v3bf16/adapter"), &lora));
    kt_status status = kt_executor_create(model, lora, NULL, &executor);
    kt_lora_free(lora);
    TRY(status);
    status = talk_traced(ctx, executor, prompt, sizeof prompt / sizeof *prompt, &token);
    kt_executor_free(executor);
    TRY(status);
    TRY(kt_tokenizer_decode(tokenizer, &token, 1, 0, &text, &num));
    kt_free(text);
    return KT_OK;
}

static kt_status chat(kt_context *ctx)
{
    kt_tokenizer *tokenizer;
    kt_model *model = NULL;
    TRY(kt_tokenizer_load(ctx, in(reference, "text/tiny"), &tokenizer));
    kt_status status = kt_model_load(ctx, in(reference, "cases/v3bf16/model"), NULL, &model);
    if (status == KT_OK)
        status = chat_with(ctx, tokenizer, model);
    kt_model_free(model);
    kt_tokenizer_free(tokenizer);
    return status;
}

static const struct walk {
    const char *name;
    kt_status (*run)(kt_context *ctx);
} walks[] = {{"load", load}, {"train", train}, {"convert", convert}, {"chat", chat}};

static bool fits(enum fault_kind kind, kt_status status)
{
    if (status == KT_OK)
        return true;
    if (kind == FAULT_ALLOC)
        return status == KT_ERROR_OUT_OF_MEMORY;
    /* A file of which it could not be told whether it is there is opened, and may not be there. */
    return kind != FAULT_SHORT && (status == KT_ERROR_IO || status == KT_ERROR_NOT_FOUND);
}

static int count_unfinished(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    size_t length = strlen(path);
    return length > 4 && strcmp(path + length - 4, ".tmp") == 0;
}

static uint64_t all_bytes;

static int add_bytes(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    uint64_t hash = 0xcbf29ce484222325;
    FILE *file = flag == FTW_F ? fopen(path, "rb") : NULL;
    (void)st, (void)ftw;
    for (int c; file && (c = getc(file)) != EOF;)
        hash = (hash ^ (uint64_t)c) * 0x100000001b3;
    if (file)
        fclose(file);
    all_bytes += file ? hash : 0;
    return 0;
}

/* Of all files in the folder, whatever their order. */
static uint64_t hash_folder(void)
{
    all_bytes = 0;
    nftw(folder, add_bytes, 16, FTW_PHYS);
    return all_bytes;
}

/* Whether what is in the folder can be gone on from. */
static bool is_whole(kt_context *ctx, const struct walk *walk)
{
    kt_status status = KT_OK;
    if (walk->run == convert)
        status = convert(ctx);
    if (walk->run == train && access(in(folder, "adapter_config.json"), F_OK) == 0) {
        struct training t = {0};
        status = begin(ctx, &t);
        if (status == KT_OK)
            status = resume(&t);
        stop(&t);
        kt_batch_free(t.batch);
        kt_model_free(t.model);
    }
    if (status != KT_OK && strstr(kt_last_error(ctx), "complete") == NULL)
        return false;
    return nftw(folder, count_unfinished, 16, FTW_PHYS) == 0;
}

static bool told(const char *what, long at, kt_context *ctx)
{
    fprintf(stderr, "call %ld: %s: %s\n", at, what, kt_last_error(ctx));
    return false;
}

/* The walk with call `at` failing; then without, for what a host would do next. */
static bool run(enum fault_kind kind, const struct walk *walk, long at, long *total)
{
    kt_context_options options;
    kt_context *ctx;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    empty_folder();
    fault_begin(kind, at);
    kt_status status = kt_context_create(&options, &ctx);
    if (status == KT_OK)
        status = walk->run(ctx);
    *total = fault_end();
    bool well = true;
    written = hash_folder();
    if (status == KT_OK && wanted_bytes && written != wanted_bytes)
        well = told("other files", at, ctx);
    if (status != KT_OK && !*kt_last_error(ctx))
        well = told("no sentence", at, ctx);
    if (!fits(kind, status))
        well = told(kt_status_string(status), at, ctx);
    if (getenv("KT_FAULT_SHOW"))
        told(kt_status_string(status), at, ctx);
    kt_context_free(ctx);
    options.num_threads = 1;
    if (kt_context_create(&options, &ctx) != KT_OK || !is_whole(ctx, walk))
        well = told("cannot go on", at, ctx);
    if (walk->run == convert && wanted_bytes && hash_folder() != wanted_bytes)
        well = told("goes on to other files", at, ctx);
    kt_context_free(ctx);
    if (__lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check())
        well = told("leaks", at, NULL);
    return well;
}

static int try_all(enum fault_kind kind, const struct walk *walk, long every, long first)
{
    long failed = 0, tried = 0, total, ignored;
    if (!run(kind, walk, 0, &total))
        return 1;
    double loss = last_loss;
    wanted_bytes = written;
    for (long n = first; n <= total; n += every, tried++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(run(kind, walk, n, &ignored) && last_loss == loss ? 0 : 1);
        if (child < 0 || waitpid(child, &status, 0) < 0)
            return 2;
        if (WIFSIGNALED(status))
            fprintf(stderr, "call %ld: signal %d\n", n, WTERMSIG(status));
        failed += status != 0;
    }
    printf("%s: %ld of %ld calls failed, %ld not well\n", walk->name, tried, total, failed);
    return failed || tried == 0;
}

int main(int argc, char **argv)
{
    const struct walk *walk = walks;
    long every = argc > 4 ? atol(argv[4]) : 1, first = argc > 5 ? atol(argv[5]) : 1;
    enum fault_kind kind = argc > 3 ? fault_kind(argv[2]) : FAULT_NUM_KINDS;
    while (argc > 3 && walk < walks + 4 && strcmp(walk->name, argv[3]))
        walk++;
    if (kind == FAULT_NUM_KINDS || walk == walks + 4 || every < 1 || first < 1)
        return 2;
    reference = argv[1];
    if (access("/dev/shm", W_OK) != 0)
        strcpy(folder, "/tmp/kt-faults-XXXXXX");
    if (!mkdtemp(folder))
        return 2;
    int result = try_all(kind, walk, every, first);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return result;
}
