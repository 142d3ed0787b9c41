/* SPDX-License-Identifier: Apache-2.0 */
/* Damages checkpoints and adapters in thousands of ways that depend on a counter alone. Whatever
 * stands in a file, loading gives a model whose weights can be read, or a sentence. */
#include "core/random.h"
#include "formats/safetensors.h"
#include "model/adapter.h"
#include "tiny_model.h"
#include "toy_model.h"
#include "main.h"

enum { ROUNDS = 4000, MAX_BYTES = 1 << 16 };

struct text {
    size_t size;
    char bytes[MAX_BYTES];
};

static uint32_t draw(uint64_t round, uint64_t at, uint32_t below)
{
    uint32_t words[4];
    kt_philox(20, round, at, words);
    return (uint32_t)((uint64_t)words[0] * below >> 32);
}

static void splice(struct text *t, size_t at, size_t removed, const char *put, size_t length)
{
    if (at + removed > t->size)
        removed = t->size - at;
    if (t->size - removed + length > MAX_BYTES)
        return;
    memmove(t->bytes + at + length, t->bytes + at + removed, t->size - at - removed);
    memcpy(t->bytes + at, put, length);
    t->size += length - removed;
}

static void mutate(struct text *t, uint64_t round)
{
    static const char *const words[] = {"0",
                                        "-1",
                                        "18446744073709551616",
                                        "1e308",
                                        "null",
                                        "[]",
                                        "{}",
                                        "9223372036854775807",
                                        "\"\"",
                                        "true",
                                        "\"F32\"",
                                        "[0,0]",
                                        "\\u0000",
                                        ",",
                                        "}",
                                        "\xff",
                                        "4096",
                                        "1000000000",
                                        "0.5",
                                        "[[[["};
    char copy[64];
    uint32_t times = 1 + draw(round, 0, 3);
    for (uint32_t i = 1; i <= times && t->size; i++) {
        size_t at = draw(round, 10 * i, (uint32_t)t->size);
        const char *word = words[draw(round, 10 * i + 1, sizeof words / sizeof *words)];
        size_t length = draw(round, 10 * i + 2, sizeof copy);
        switch (draw(round, 10 * i + 3, 6)) {
        case 0:
            t->bytes[at] = (char)(t->bytes[at] ^ (1 << draw(round, 10 * i + 4, 8)));
            break;
        case 1:
            splice(t, at, 1, word, strlen(word));
            break;
        case 2:
            splice(t, at, length, "", 0);
            break;
        case 3:
            if (at + length <= t->size) {
                memcpy(copy, t->bytes + at, length);
                splice(t, draw(round, 10 * i + 5, (uint32_t)t->size), 0, copy, length);
            }
            break;
        case 4: /* another number in place of one */
            while (at < t->size && (t->bytes[at] < '0' || t->bytes[at] > '9'))
                at++;
            for (length = 0; at + length < t->size && t->bytes[at + length] >= '0' &&
                             t->bytes[at + length] <= '9';)
                length++;
            splice(t, at, length, word, strlen(word));
            break;
        default:
            t->size = at;
        }
    }
}

static void check_failure(kt_status status)
{
    ck_assert_int_lt(status, 0);
    ck_assert_int_ne(status, KT_ERROR_INTERNAL);
    ck_assert_uint_gt(strlen(kt_last_error(fixture_context)), 10);
}

static void read_file(const char *name, struct text *t)
{
    FILE *f = fopen(fixture_path(name), "rb");
    ck_assert_ptr_nonnull(f);
    t->size = fread(t->bytes, 1, MAX_BYTES, f);
    fclose(f);
    ck_assert_uint_lt(t->size, MAX_BYTES);
}

static struct text whole, changed, config;

/* Sums every byte that the tensors claim, for the address sanitizer to watch. */
static unsigned touch(const struct kt_checkpoint *c)
{
    unsigned sum = 0;
    for (size_t i = 0; i < c->num_tensors; i++)
        for (uint64_t j = 0; j < c->tensors[i].bytes; j++)
            sum += ((const unsigned char *)c->tensors[i].data)[j];
    return sum;
}

static size_t header_bytes(const struct text *t)
{
    return (size_t)(unsigned char)t->bytes[0] | (size_t)(unsigned char)t->bytes[1] << 8;
}

/* `changed` becomes `whole`, a safetensors file, with a mutated header. */
static void damage_header(uint64_t round)
{
    static struct text header;
    header.size = header_bytes(&whole);
    memcpy(header.bytes, whole.bytes + 8, header.size);
    mutate(&header, round);
    changed = whole;
    splice(&changed, 8, header_bytes(&whole), header.bytes, header.size);
    if (draw(round, 1, 8)) { /* else the length stays the old one */
        changed.bytes[0] = (char)header.size;
        changed.bytes[1] = (char)(header.size >> 8);
    }
}

START_TEST(damaged_headers_do_no_harm)
{
    struct tiny tiny;
    size_t opened = 0;
    tiny_create(&tiny, 1);
    tiny_write(&tiny);
    read_file("model.safetensors", &whole);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct kt_checkpoint *c;
        damage_header(round);
        fixture_write("model.safetensors", changed.bytes, changed.size);
        kt_status status = kt_checkpoint_open(fixture_context, fixture_folder, &c);
        if (status != KT_OK) {
            ck_assert_ptr_null(c);
            check_failure(status);
            continue;
        }
        opened++;
        touch(c);
        kt_checkpoint_close(c);
    }
    ck_assert_uint_gt(opened, 0);
    ck_assert_uint_lt(opened, ROUNDS / 2);
    tiny_free(&tiny);
}
END_TEST

START_TEST(damaged_configurations_do_no_harm)
{
    struct tiny tiny;
    size_t loaded = 0;
    tiny_create(&tiny, _i);
    tiny_set(&tiny, "rope_scaling",
             "{\"type\":\"yarn\",\"factor\":40,\"mscale\":1.0,"
             "\"mscale_all_dim\":1.0,\"beta_fast\":32,\"beta_slow\":1,"
             "\"original_max_position_embeddings\":4096}");
    tiny_write(&tiny);
    read_file("config.json", &config);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        kt_model *model;
        changed = config;
        mutate(&changed, round + (uint64_t)_i * ROUNDS);
        fixture_write("config.json", changed.bytes, changed.size);
        kt_status status = kt_model_load(fixture_context, fixture_folder, NULL, &model);
        if (status != KT_OK) {
            ck_assert_ptr_null(model);
            check_failure(status);
            continue;
        }
        loaded++;
        float tables[2][8 * 64];
        if (model->config.rope.dim <= 64)
            kt_rope_tables(&model->config.rope, 8, 0, 8, tables[0], tables[1]);
        kt_model_free(model);
    }
    ck_assert_uint_gt(loaded, 0);
    ck_assert_uint_lt(loaded, ROUNDS / 2);
    tiny_free(&tiny);
}
END_TEST

START_TEST(damaged_rule_files_do_no_harm)
{
    static const char rule_text[] = "- match:\n    name: \"^model\\\\.layers\\\\.(1|2)\\\\.\"\n"
                                    "    class: torch.nn.Linear\n  replace:\n    class: a.B\n"
                                    "    kwargs: {generate_device: 'cuda:0', backend: AMXBF16}\n"
                                    "  recursive: False\n- match: {name: x}\n  replace: &a {}\n";
    size_t loaded = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        kt_rule *rule;
        changed.size = sizeof rule_text - 1;
        memcpy(changed.bytes, rule_text, changed.size);
        mutate(&changed, round);
        fixture_write("rule.yaml", changed.bytes, changed.size);
        kt_status status = kt_rule_load(fixture_context, fixture_path("rule.yaml"), &rule);
        if (status != KT_OK) {
            check_failure(status);
            continue;
        }
        loaded++;
        ck_assert_ptr_nonnull(kt_rule_device(rule, "model.layers.1.self_attn.o_proj"));
        kt_rule_free(rule);
    }
    ck_assert_uint_gt(loaded, 0);
}
END_TEST

/* The files of an adapter and of its optimizer, one after another. */
START_TEST(damaged_adapters_do_no_harm)
{
    const char *names[] = {"adapter_config.json", "adapter_model.safetensors", "optimizer.zst"};
    kt_model *toy = toy_model_new(fixture_context);
    kt_lora_options options;
    kt_lora *good, *lora;
    kt_optimizer *optimizer;
    size_t loaded = 0;
    kt_lora_options_init(&options, sizeof options);
    options.rank = 2;
    ck_assert_int_eq(kt_lora_create(toy, &options, &good), KT_OK);
    ck_assert_int_eq(kt_optimizer_create(good, NULL, &optimizer), KT_OK);
    good->has_grad[0] = good->has_grad[2] = 1;
    ck_assert_int_eq(kt_optimizer_step(optimizer, 1e-3, NULL), KT_OK);
    ck_assert_int_eq(kt_lora_save(good, fixture_folder), KT_OK);
    ck_assert_int_eq(kt_optimizer_save(optimizer, fixture_path(names[2])), KT_OK);
    read_file(names[_i], &whole);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        changed = whole;
        if (_i == 1)
            damage_header(round);
        else
            mutate(&changed, round);
        fixture_write(names[_i], changed.bytes, changed.size);
        kt_status status = kt_optimizer_load(optimizer, fixture_path(names[2]));
        if (status == KT_OK)
            status = kt_lora_load(toy, fixture_folder, &lora);
        if (status != KT_OK) {
            check_failure(status);
            continue;
        }
        loaded++;
        kt_lora_free(lora);
    }
    ck_assert_uint_lt(loaded, ROUNDS / 2);
    kt_optimizer_free(optimizer);
    kt_lora_free(good);
    toy_model_delete(toy);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("fuzz", .timeout = 120, .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(damaged_headers_do_no_harm),
        LOOP(damaged_configurations_do_no_harm, 2),
        TEST(damaged_rule_files_do_no_harm),
        LOOP(damaged_adapters_do_no_harm, 3),
    };
    return RUN_TESTS("fuzz", tests);
}
