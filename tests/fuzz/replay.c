/* SPDX-License-Identifier: Apache-2.0 */
/* What libFuzzer does, for any compiler and without looking: the inputs of a target's corpus, then
 * mutations of them, about a second long.
 *
 *     fuzz_NAME CORPUS [SEED]    SEED is printed; without one it is always the same */
#include <dirent.h>
#include <stdio.h>
#include <time.h>

#include "core/random.h"
#include "fuzz.h"

enum { MAX_INPUTS = 64, MAX_SIZE = 1 << 16, MUTATIONS = 4000, SECONDS = 1 };

struct input {
    uint8_t *data;
    size_t size;
};

static struct input inputs[MAX_INPUTS];
static size_t num_inputs;
static uint64_t seed = 1, drawn, round_number;

static uint32_t draw(size_t below)
{
    uint32_t words[4];
    kt_philox(seed, round_number, drawn++, words);
    return below ? (uint32_t)((uint64_t)words[0] * below >> 32) : 0;
}

static void read_corpus(const char *folder)
{
    DIR *dir = opendir(folder);
    fuzz_expect(dir != NULL, folder);
    struct dirent **entries;
    int num = scandir(folder, &entries, NULL, alphasort);
    for (int i = 0; i < num; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        FILE *file = entries[i]->d_name[0] == '.' ? NULL : fopen(path, "rb");
        free(entries[i]);
        if (!file)
            continue;
        fuzz_expect(num_inputs < MAX_INPUTS, "too many inputs");
        struct input *input = &inputs[num_inputs++];
        input->data = malloc(MAX_SIZE);
        input->size = fread(input->data, 1, MAX_SIZE, file);
        fclose(file);
    }
    free(entries);
    closedir(dir);
}

static void replace(struct input *t, size_t at, size_t removed, const void *put, size_t length)
{
    if (t->size - removed + length > MAX_SIZE)
        return;
    memmove(t->data + at + length, t->data + at + removed, t->size - at - removed);
    memcpy(t->data + at, put, length);
    t->size += length - removed;
}

static void mutate(struct input *t)
{
    static const char *const words[] = {"\"", "{",  "}",     "[",  "]",           ",",   ":",
                                        "\\", "\f", "null",  "-1", "1e999",       "- ",  "&a",
                                        "*a", "(",  "\\p{L", "*+", "99999999999", "\xff"};
    size_t at = draw(t->size + 1), left = t->size - at, length = 1 + draw(40);
    length = length < left ? length : left;
    uint8_t byte = (uint8_t)draw(256), copy[40];
    const char *word = words[draw(sizeof words / sizeof *words)];
    const struct input *other = &inputs[draw(num_inputs)];
    switch (draw(6)) {
    case 0:
        replace(t, at, left > 0, &byte, 1);
        break;
    case 1:
        replace(t, at, length, "", 0);
        break;
    case 2:
        memcpy(copy, t->data + at, length);
        replace(t, at, 0, copy, length);
        break;
    case 3:
        replace(t, at, 0, word, strlen(word));
        break;
    case 4: /* a piece of another input */
        length = other->size < 40 ? other->size : 40;
        replace(t, at, 0, other->data + draw(other->size - length + 1), length);
        break;
    default: /* a bit, as in lengths and types */
        if (left)
            t->data[at] ^= (uint8_t)(1u << draw(8));
    }
}

/* A copy that is as large as the input, so that a sanitizer sees what is read behind it. */
static void run(const struct input *t)
{
    uint8_t *exact = malloc(t->size ? t->size : 1);
    memcpy(exact, t->data, t->size);
    LLVMFuzzerTestOneInput(exact, t->size);
    free(exact);
}

int main(int argc, char **argv)
{
    fuzz_expect(argc >= 2, "replay CORPUS [SEED]");
    if (argc > 2)
        seed = strtoull(argv[2], NULL, 10);
    read_corpus(argv[1]);
    fuzz_expect(num_inputs > 0, "an empty corpus");
    for (size_t i = 0; i < num_inputs; i++)
        run(&inputs[i]);
    printf("%zu inputs, seed %llu\n", num_inputs, (unsigned long long)seed);
    fflush(stdout);
    struct input mutated = {malloc(MAX_SIZE), 0};
    time_t end = time(NULL) + SECONDS + 1;
    for (; round_number < MUTATIONS && time(NULL) < end; round_number++) {
        drawn = 0;
        const struct input *from = &inputs[draw(num_inputs)];
        mutated.size = from->size;
        memcpy(mutated.data, from->data, from->size);
        for (uint32_t n = 1 + draw(4); n > 0; n--)
            mutate(&mutated);
        run(&mutated);
    }
    printf("%llu mutations\n", (unsigned long long)round_number);
    free(mutated.data);
    for (size_t i = 0; i < num_inputs; i++)
        free(inputs[i].data);
    return 0;
}
