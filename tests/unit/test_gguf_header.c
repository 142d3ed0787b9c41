/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF files that are not as they should be: each gets a sentence and does no harm. */
#include "core/random.h"
#include "fixture.h"
#include "formats/gguf.h"
#include "gguf_reference.h"
#include "model/model.h"
#include "main.h"

enum { MAX_BYTES = 1 << 17, ROUNDS = 4000 };
enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

static struct {
    size_t size;
    unsigned char bytes[MAX_BYTES];
} file, changed;

static void put(uint64_t number, int size)
{
    for (int i = 0; i < size; i++)
        file.bytes[file.size++] = (unsigned char)(number >> (8 * i));
}

static void put_string(const char *text)
{
    put(strlen(text), 8);
    memcpy(file.bytes + file.size, text, strlen(text));
    file.size += strlen(text);
}

static void begin(uint64_t version, uint64_t tensors, uint64_t keys)
{
    memcpy(file.bytes, "GGUF", 4);
    file.size = 4;
    put(version, 4);
    put(tensors, 8);
    put(keys, 8);
}

static void put_key(const char *key, uint64_t type)
{
    put_string(key);
    put(type, 4);
}

static void put_number(const char *key, uint64_t type, uint64_t value, int size)
{
    put_key(key, type);
    put(value, size);
}

static void put_tensor(const char *name, int ndim, const uint64_t *sizes, uint64_t type,
                       uint64_t offset)
{
    put_string(name);
    put((uint64_t)ndim, 4);
    for (int i = 0; i < ndim; i++)
        put(sizes[i], 8);
    put(type, 4);
    put(offset, 8);
}

/* Zeros to the next multiple of 32, then `size` more. */
static void put_data(size_t size)
{
    size_t end = (file.size + 31) / 32 * 32 + size;
    memset(file.bytes + file.size, 0, end - file.size);
    file.size = end;
}

static struct kt_gguf *gguf;

static kt_status open_file(void)
{
    fixture_write("x.gguf", file.bytes, file.size);
    kt_status status = kt_gguf_open(fixture_context, fixture_path("x.gguf"), &gguf);
    if (status != KT_OK)
        ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "x.gguf"));
    return status;
}

START_TEST(values_of_every_type)
{
    begin(2, 1, 14);
    put_number("u8", U8, 0xff, 1);
    put_number("i8", I8, 0xff, 1);
    put_number("u16", U16, 0xfffe, 2);
    put_number("i16", I16, 0x8000, 2);
    put_number("u32", U32, 0xffffffff, 4);
    put_number("i32", I32, 0x80000000, 4);
    put_number("f32", F32, 0x358637bd, 4); /* 1e-6 */
    put_number("bool", BOOL, 1, 1);
    put_key("string", STRING);
    put_string("h\xc3\xa9");
    put_key("list", ARRAY);
    put(I16, 4), put(2, 8), put(7, 2), put(0xffff, 2);
    put_number("u64", U64, UINT64_MAX, 8);
    put_number("i64", I64, UINT64_MAX - 4, 8);
    put_number("f64", F64, 0x3ff8000000000000, 8);
    put_key("floats", ARRAY);
    put(F32, 4), put(2, 8), put(0x7fc00000, 4), put(0, 4);
    put_tensor("t", 2, (uint64_t[]){3, 2}, 1, 0);
    put_data(12);
    ck_assert_msg(open_file() == KT_OK, "%s", kt_last_error(fixture_context));
    char *text = json_dumps(gguf->metadata, JSON_COMPACT | JSON_SORT_KEYS);
    ck_assert_str_eq(text, "{\"bool\":true,\"f32\":9.9999999999999995e-7,\"f64\":1.5,"
                           "\"floats\":null,\"i16\":-32768,\"i32\":-2147483648,\"i64\":-5,"
                           "\"i8\":-1,\"list\":[7,-1],\"string\":\"h\xc3\xa9\",\"u16\":65534,"
                           "\"u32\":4294967295,\"u64\":1.8446744073709552e19,\"u8\":255}");
    free(text);
    ck_assert_double_eq(json_real_value(json_object_get(gguf->metadata, "f32")), 1e-6);
    const struct kt_tensor *t = kt_gguf_find(gguf, "t");
    ck_assert_int_eq(t->shape[0], 2); /* rows */
    ck_assert_int_eq(t->shape[1], 3);
    ck_assert_uint_eq(t->bytes, 12);
    ck_assert_ptr_null(kt_gguf_find(gguf, "u"));
    kt_gguf_close(gguf);
}
END_TEST

#define MAX UINT64_MAX
static const struct {
    uint64_t version, tensors, keys;
    kt_status status;
    const char *sentence;
} bad_beginnings[] = {
    {1, 0, 0, KT_ERROR_UNSUPPORTED, "version 1 is not supported"},
    {4, 0, 0, KT_ERROR_UNSUPPORTED, "version 4 is not supported"},
    {0x03000000, 0, 0, KT_ERROR_UNSUPPORTED, "little-endian"},
    {3, MAX, 0, KT_ERROR_FORMAT, "the number of tensors is 18446744073709551615"},
    {3, 1, 0, KT_ERROR_FORMAT, "the number of tensors is 1, more than"},
    {3, 0, MAX, KT_ERROR_FORMAT, "the number of metadata keys is 18446744073709551615"},
    {3, 0, 1, KT_ERROR_FORMAT, "the number of metadata keys is 1, more than"},
};

START_TEST(beginnings)
{
    begin(bad_beginnings[_i].version, bad_beginnings[_i].tensors, bad_beginnings[_i].keys);
    ck_assert_fails(open_file(), bad_beginnings[_i].status, bad_beginnings[_i].sentence);
}
END_TEST

START_TEST(every_truncation)
{
    begin(3, 1, 2);
    put_key("list", ARRAY);
    put(STRING, 4), put(2, 8), put_string("a"), put_string("b");
    put_number("n", U32, 1, 4);
    put_tensor("t", 1, (uint64_t[]){2}, 0, 0);
    put_data(8);
    ck_assert_int_eq(open_file(), KT_OK);
    kt_gguf_close(gguf);
    while (file.size > 1) {
        file.size--;
        ck_assert_int_eq(open_file(), KT_ERROR_FORMAT);
    }
    memcpy(file.bytes, "GGML", 4);
    file.size = 100;
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "does not begin with \"GGUF\"");
}
END_TEST

/* One key of this type with these bytes of value. */
static const struct {
    uint64_t type;
    uint64_t value[3];
    int sizes[3];
    kt_status status;
    const char *sentence;
} bad_values[] = {
    {13, {0}, {8}, KT_ERROR_FORMAT, "key k has type 13, which GGUF does not have"},
    {MAX, {0}, {8}, KT_ERROR_FORMAT, "key k has type 4294967295"},
    {BOOL, {2}, {1}, KT_ERROR_FORMAT, "key k is neither true nor false"},
    {F32, {0x7f800000}, {4}, KT_ERROR_FORMAT, "key k is not a finite number"},
    {F64, {0x7ff8000000000000}, {8}, KT_ERROR_FORMAT, "key k is not a finite number"},
    {STRING, {MAX}, {8}, KT_ERROR_FORMAT, "truncated: k takes 18446744073709551615 bytes"},
    {ARRAY, {99, 0}, {4, 8}, KT_ERROR_FORMAT, "key k has type 99"},
    {ARRAY, {ARRAY, 0}, {4, 8}, KT_ERROR_UNSUPPORTED, "key k is an array of arrays"},
    {ARRAY, {U64, MAX / 8 + 1}, {4, 8}, KT_ERROR_FORMAT, "k is 2305843009213693952, more than"},
    {ARRAY, {F32, 1ull << 62}, {4, 8}, KT_ERROR_FORMAT, "k is 4611686018427387904, more than"},
    {ARRAY, {STRING, 1, MAX}, {4, 8, 8}, KT_ERROR_FORMAT, "truncated: k takes"},
};

START_TEST(values)
{
    begin(3, 0, 1);
    put_key("k", bad_values[_i].type);
    for (int i = 0; i < 3; i++)
        put(bad_values[_i].value[i], bad_values[_i].sizes[i]);
    ck_assert_fails(open_file(), bad_values[_i].status, bad_values[_i].sentence);
}
END_TEST

START_TEST(keys)
{
    begin(3, 0, 2);
    put_number("k", U8, 1, 1);
    put_number("k", U8, 1, 1);
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "metadata key k is there twice");
    begin(3, 0, 1);
    put_number("", U64, 1, 8);
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "a metadata key at byte 32 is empty");
    begin(3, 0, 1);
    put(3, 8), put(0x620061, 3), put(U64, 4), put(0, 8);
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "holds a NUL");
    begin(3, 0, 1);
    put_number("general.alignment", U32, 24, 4);
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "not a power of two");
    begin(3, 0, 1);
    put_number("general.alignment", U32, 0, 4);
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "general.alignment");
    begin(3, 0, 1);
    put_key("general.alignment", STRING), put_string("32");
    ck_assert_fails(open_file(), KT_ERROR_FORMAT, "general.alignment");
}
END_TEST

/* A second tensor beside one of 2 floats; 64 bytes of data. */
static const struct {
    int ndim;
    uint64_t sizes[5], type, offset;
    kt_status status;
    const char *sentence;
} bad_tensors[] = {
    {0, {0}, 0, 32, KT_ERROR_FORMAT, "tensor u: it has no dimension or more than 4"},
    {5, {1, 1, 1, 1, 1}, 0, 32, KT_ERROR_FORMAT, "tensor u: it has no dimension or more than 4"},
    {2, {0, 2}, 0, 32, KT_ERROR_FORMAT, "tensor u: one of its dimensions is 0"},
    {1, {MAX}, 0, 32, KT_ERROR_FORMAT, "tensor u: one of its dimensions is 0 or too large"},
    {2, {1ull << 32, 1ull << 32}, 0, 32, KT_ERROR_FORMAT, "tensor u: its shape overflows"},
    {1, {1ull << 62}, 0, 32, KT_ERROR_FORMAT, "tensor u: its shape overflows"},
    {1, {2}, 4, 32, KT_ERROR_UNSUPPORTED, "tensor u has type 4, which is not known"},
    {1, {2}, 0xffffffff, 32, KT_ERROR_UNSUPPORTED, "tensor u has type 4294967295"},
    {1, {33}, 8, 32, KT_ERROR_FORMAT, "tensor u: its rows do not consist of whole blocks"},
    {2, {16, 2}, 2, 32, KT_ERROR_FORMAT, "tensor u: its rows do not consist of whole blocks"},
    {1, {9}, 0, 32, KT_ERROR_FORMAT, "truncated: tensor u takes 36 bytes from byte 32"},
    {1, {2}, 0, 96, KT_ERROR_FORMAT, "truncated: tensor u takes 8 bytes from byte 96"},
    {1, {2}, 0, MAX - 31, KT_ERROR_FORMAT, "truncated: tensor u takes 8 bytes"},
    {1, {2}, 0, 8, KT_ERROR_FORMAT, "tensor u: it does not start at a multiple of the alignment"},
    {1, {2}, 0, 0, KT_ERROR_FORMAT, "its bytes overlap with another tensor's"},
};

START_TEST(tensors)
{
    begin(3, 2, 0);
    put_tensor("t", 1, (uint64_t[]){2}, 0, 0);
    put_tensor("u", bad_tensors[_i].ndim, bad_tensors[_i].sizes, bad_tensors[_i].type,
               bad_tensors[_i].offset);
    put_data(64);
    ck_assert_fails(open_file(), bad_tensors[_i].status, bad_tensors[_i].sentence);
}
END_TEST

static uint32_t draw(uint64_t round, uint64_t at, uint32_t below)
{
    uint32_t words[4];
    kt_philox(21, round, at, words);
    return (uint32_t)((uint64_t)words[0] * below >> 32);
}

/* Changes a few bytes, most of them in the header, to what lengths and counts fear. */
static void damage(uint64_t round, size_t header)
{
    static const unsigned char bytes[] = {0, 1, 2, 7, 8, 9, 0x20, 0x7f, 0x80, 0xff};
    changed = file;
    uint32_t times = 1 + draw(round, 0, 4);
    for (uint32_t i = 1; i <= times; i++) {
        size_t at =
            draw(round, 10 * i, (uint32_t)(draw(round, 10 * i + 1, 8) ? header : file.size));
        uint32_t length = draw(round, 10 * i + 2, 9);
        for (size_t j = at; j < at + length && j < file.size; j++)
            changed.bytes[j] = bytes[draw(round, 10 * i + 3, sizeof bytes)];
        changed.bytes[at] ^= (unsigned char)(1 << draw(round, 10 * i + 4, 8));
    }
    if (draw(round, 1, 8) == 0)
        changed.size = draw(round, 2, (uint32_t)file.size);
}

/* What loads has weights that can be read. */
static kt_status load_model(const char *path)
{
    kt_model *model;
    kt_status status = kt_model_load(fixture_context, path, NULL, &model);
    if (status == KT_OK)
        ck_assert_int_eq(kt_model_check_finite(model), KT_OK);
    else
        ck_assert_ptr_null(model);
    kt_model_free(model);
    return status;
}

static kt_status load_tokenizer(const char *path)
{
    kt_tokenizer *tokenizer;
    int32_t *ids;
    size_t num;
    KT_TRY(kt_tokenizer_load(fixture_context, path, &tokenizer));
    ck_assert_int_eq(kt_tokenizer_encode(tokenizer, "Hello, 12345", 12, 1, &ids, &num), KT_OK);
    kt_free(ids);
    kt_tokenizer_free(tokenizer);
    return KT_OK;
}

static const char *const whole[] = {"deepseek2.gguf", "qwen2moe.gguf", "mixtral.gguf",
                                    "quantised.gguf", "tokenizer.gguf"};

START_TEST(damaged_files_do_no_harm)
{
    size_t loaded = 0, header;
    bool tokenizer = strcmp(whole[_i], "tokenizer.gguf") == 0;
    file.size = reference_read(whole[_i], file.bytes, sizeof file.bytes);
    ck_assert_int_eq(kt_gguf_open(fixture_context, reference_path(whole[_i]), &gguf), KT_OK);
    header = tokenizer
                 ? file.size
                 : (size_t)((const char *)gguf->tensors[0].data - (const char *)gguf->files[0].map);
    kt_gguf_close(gguf);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        damage(round, header);
        fixture_write("x.gguf", changed.bytes, changed.size);
        const char *path = fixture_path("x.gguf");
        kt_status status = tokenizer ? load_tokenizer(path) : load_model(path);
        loaded += status == KT_OK;
        ck_assert_int_le(status, KT_OK);
        ck_assert_int_ne(status, KT_ERROR_INTERNAL);
        if (status != KT_OK)
            ck_assert_uint_gt(strlen(kt_last_error(fixture_context)), 10);
    }
    ck_assert_uint_gt(loaded, 0);
    ck_assert_uint_lt(loaded, ROUNDS / 2);
}
END_TEST

#define COUNT(array) (int)(sizeof(array) / sizeof(array)[0])

int main(void)
{
    const struct test tests[] = {
        GROUP("headers", .timeout = 120, .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(values_of_every_type),
        LOOP(beginnings, COUNT(bad_beginnings)),
        TEST(every_truncation),
        LOOP(values, COUNT(bad_values)),
        TEST(keys),
        LOOP(tensors, COUNT(bad_tensors)),
        LOOP(damaged_files_do_no_harm, COUNT(whole)),
    };
    return RUN_TESTS("gguf_header", tests);
}
