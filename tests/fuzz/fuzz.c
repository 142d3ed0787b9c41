/* SPDX-License-Identifier: Apache-2.0 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <unistd.h>

static kt_context *context;
static char folder[64];

static void finish(void)
{
    kt_context_free(context);
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        unlink(fuzz_path(entry->d_name));
    if (dir)
        closedir(dir);
    rmdir(folder);
}

static void start(void)
{
    kt_context_options options;
    kt_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    options.pin_threads = 0;
    options.memory_limit = (uint64_t)512 << 20;
    fuzz_expect(kt_context_create(&options, &context) == KT_OK, kt_last_error(NULL));
    bool in_memory = access("/dev/shm", W_OK) == 0;
    strcpy(folder, in_memory ? "/dev/shm/kt-fuzz-XXXXXX" : "/tmp/kt-fuzz-XXXXXX");
    fuzz_expect(mkdtemp(folder) != NULL, "no temporary folder");
    atexit(finish);
}

kt_context *fuzz_context(void)
{
    if (!context)
        start();
    return context;
}

void fuzz_expect(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

bool fuzz_ok(kt_status status)
{
    fuzz_expect(status == KT_OK || *kt_last_error(context), "a failure without a sentence");
    fuzz_expect(status != KT_ERROR_INTERNAL && status != KT_ERROR_STATE &&
                    status != KT_ERROR_CANCELLED,
                kt_last_error(context));
    return status == KT_OK;
}

const char *fuzz_path(const char *name)
{
    static char paths[4][512];
    static int next;
    fuzz_context();
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

const char *fuzz_file(const char *name, const void *data, size_t size)
{
    const char *path = fuzz_path(name);
    FILE *file = fopen(path, "wb");
    fuzz_expect(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, path);
    return path;
}

const kt_tokenizer *fuzz_tokenizer(const char *name)
{
    const char *texts = getenv("KT_FUZZ_TEXT");
    char path[4096];
    kt_tokenizer *tokenizer;
    snprintf(path, sizeof path, "%s/%s", texts ? texts : KT_REFERENCE_DIR "/text", name);
    fuzz_expect(kt_tokenizer_load(fuzz_context(), path, &tokenizer) == KT_OK,
                kt_last_error(fuzz_context()));
    return tokenizer;
}

char *fuzz_text(const uint8_t **data, size_t *size, size_t *length)
{
    const uint8_t *end = *size ? memchr(*data, '\f', *size) : NULL;
    *length = end ? (size_t)(end - *data) : *size;
    char *text = malloc(*length + 1);
    fuzz_expect(text != NULL, "no memory");
    if (*length)
        memcpy(text, *data, *length);
    text[*length] = 0;
    size_t taken = *length + (end != NULL);
    *size -= taken;
    *data = taken ? *data + taken : *data;
    return text;
}

/* What the tokens are as they come. */
static size_t stream(const kt_tokenizer *tokenizer, const int32_t *ids, size_t num, char *out,
                     size_t capacity)
{
    kt_decode_state state = {.size = sizeof state};
    size_t used = 0, more;
    for (size_t i = 0; i <= num; i++) {
        if (!fuzz_ok(kt_tokenizer_decode_next(tokenizer, &state, i < num ? ids[i] : -1, out + used,
                                              capacity - used, &more)))
            return SIZE_MAX;
        used += more;
    }
    return used;
}

void fuzz_use_tokenizer(const kt_tokenizer *tokenizer, const char *text, size_t length)
{
    static char out[1 << 20];
    for (int32_t special = 0; special < 2; special++) {
        int32_t *ids = NULL;
        size_t num = 0, decoded_length = 0;
        char *decoded = NULL;
        if (!fuzz_ok(kt_tokenizer_encode(tokenizer, text, length, special, &ids, &num)))
            continue;
        for (size_t i = 0; i < num; i++)
            fuzz_expect(ids[i] >= 0 && ids[i] < kt_tokenizer_vocab_size(tokenizer), "a strange id");
        if (fuzz_ok(kt_tokenizer_decode(tokenizer, ids, num, 1, &decoded, &decoded_length)) &&
            decoded_length < sizeof out / 2 && !strstr(decoded, "\xef\xbf\xbd")) {
            size_t streamed = stream(tokenizer, ids, num, out, sizeof out);
            fuzz_expect(streamed == SIZE_MAX ||
                            (streamed == decoded_length && memcmp(out, decoded, streamed) == 0),
                        "decoded token by token it is another text");
        }
        kt_free(decoded);
        kt_free(ids);
    }
}
