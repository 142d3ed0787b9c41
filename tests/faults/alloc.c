/* SPDX-License-Identifier: Apache-2.0 */
/* Fails one allocation of a load after another, in a process each, those of other libraries
 * included: every call must end with a status and a sentence.
 *
 *     alloc REFERENCE [STEP [FIRST]]     every STEP-th one, from FIRST on */
#include <errno.h>
#include <kt/kt.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#define REAL(name) __interceptor_##name
#else
#define REAL(name) __libc_##name
#endif

void *REAL(malloc)(size_t);
void *REAL(calloc)(size_t, size_t);
void *REAL(realloc)(void *, size_t);
void *REAL(memalign)(size_t, size_t);

static atomic_long count;
static long fail_at;
static bool counting;

static bool fails(void)
{
    if (!counting || atomic_fetch_add(&count, 1) + 1 != fail_at)
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    return fails() ? NULL : REAL(malloc)(size);
}

void *calloc(size_t num, size_t size)
{
    return fails() ? NULL : REAL(calloc)(num, size);
}

void *realloc(void *old, size_t size)
{
    return fails() ? NULL : REAL(realloc)(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : REAL(memalign)(alignment, size);
}

/* Those of libc that would call its own malloc where it is not replaced. */
char *strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

char *strndup(const char *text, size_t most)
{
    size_t length = strnlen(text, most);
    char *copy = malloc(length + 1);
    if (!copy)
        return NULL;
    copy[length] = 0;
    return memcpy(copy, text, length);
}

static const char *reference;

static const char *in_reference(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", reference, name);
    return path;
}

static kt_status use_tokenizer(kt_context *ctx, const char *name)
{
    static const char text[] = "Hello <|im_start|> e\xcc\x81\xcc\x96 \xe4\xbd\xa0 123";
    kt_tokenizer *tokenizer;
    int32_t *ids = NULL;
    char *back = NULL;
    size_t num, length;
    kt_status status = kt_tokenizer_load(ctx, in_reference(name), &tokenizer);
    if (status == KT_OK)
        status = kt_tokenizer_encode(tokenizer, text, strlen(text), 1, &ids, &num);
    if (status == KT_OK)
        status = kt_tokenizer_decode(tokenizer, ids, num, 0, &back, &length);
    if (status == KT_OK && num < 5)
        status = KT_ERROR_INTERNAL;
    kt_free(ids);
    kt_free(back);
    kt_tokenizer_free(tokenizer);
    return status;
}

static kt_status load_rule(kt_context *ctx)
{
    kt_rule *rule;
    kt_status status =
        kt_rule_load(ctx, in_reference("../../examples/kt_optimize_rules/cpu-only.yaml"), &rule);
    kt_rule_free(rule);
    return status;
}

static kt_status load_model(kt_context *ctx, const char *name)
{
    kt_model *model;
    kt_status status = kt_model_load(ctx, in_reference(name), NULL, &model);
    kt_model_free(model);
    return status;
}

static kt_status load_all(kt_context *ctx)
{
    kt_status status = load_model(ctx, "cases/v3bf16/model");
    if (status == KT_OK)
        status = load_model(ctx, "gguf/deepseek2.gguf");
    if (status == KT_OK)
        status = use_tokenizer(ctx, "text/tiny");
    if (status == KT_OK)
        status = use_tokenizer(ctx, "text/tiny_sp");
    return status == KT_OK ? load_rule(ctx) : status;
}

/* False after anything but success or a told lack of memory. */
static bool run(void)
{
    kt_context_options options;
    kt_context *ctx;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    counting = true;
    kt_status status = kt_context_create(&options, &ctx);
    if (status == KT_OK)
        status = load_all(ctx);
    counting = false;
    const char *sentence = ctx ? kt_last_error(ctx) : "context";
    bool told = status == KT_OK || (status == KT_ERROR_OUT_OF_MEMORY && *sentence);
    if (!told)
        fprintf(stderr, "allocation %ld: %s: %s\n", fail_at, kt_status_string(status), sentence);
    kt_context_free(ctx);
    return told;
}

int main(int argc, char **argv)
{
    long step = argc > 2 ? atol(argv[2]) : 1, failed = 0, tried = 0;
    if (argc < 2 || step < 1)
        return 2;
    reference = argv[1];
    if (!run())
        return 1;
    long total = count;
    for (long n = argc > 3 ? atol(argv[3]) : 1; n <= total; n += step, tried++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            atomic_store(&count, 0);
            fail_at = n;
            _exit(run() ? 0 : 1);
        }
        if (child < 0 || waitpid(child, &status, 0) < 0)
            return 2;
        if (WIFSIGNALED(status))
            fprintf(stderr, "allocation %ld: signal %d\n", n, WTERMSIG(status));
        failed += status != 0;
    }
    printf("%ld of %ld allocations failed, %ld not well\n", tried, total, failed);
    return failed || total < 1000;
}
