/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "fixture.h"
#include "formats/atomic_file.h"
#include "formats/safetensors.h"
#include "main.h"

/* A file with this header text and `data_bytes` zeros behind it. */
static void write_raw(const char *name, uint64_t claimed, const char *header, size_t data_bytes)
{
    size_t length = strlen(header), size = 8 + length + data_bytes;
    unsigned char *bytes = calloc(1, size);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(claimed >> (8 * i));
    memcpy(bytes + 8, header, length);
    fixture_write(name, bytes, size);
    free(bytes);
}

static kt_status open_raw(const char *header, size_t data_bytes)
{
    struct kt_checkpoint *c;
    write_raw("raw.safetensors", strlen(header), header, data_bytes);
    kt_status status = kt_checkpoint_open(fixture_context, fixture_path("raw.safetensors"), &c);
    kt_checkpoint_close(c);
    return status;
}

#define ENTRY(name, dtype, shape, begin, end)                                                      \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end   \
    "]}"

static const struct {
    const char *header;
    size_t data_bytes;
    const char *sentence;
} malformed[] = {
    {"{" ENTRY("a", "F32", "[2]", "0", "8"), 8, "malformed safetensors header"},
    {"[1, 2]", 0, "not a JSON object"},
    {"{\"a\": 3}", 0, "no \"dtype\""},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no \"shape\""},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets"},
    {"{" ENTRY("a", "F32", "[1]", "0", "4.5") "}", 4, "data_offsets"},
    {"{" ENTRY("a", "F32", "[1]", "4", "0") "}", 4, "data_offsets"},
    {"{" ENTRY("a", "F32", "[1]", "-4", "0") "}", 4, "data_offsets"},
    {"{" ENTRY("a", "F32", "[1, -1]", "0", "4") "}", 4, "its shape holds"},
    {"{" ENTRY("a", "F32", "[\"1\"]", "0", "4") "}", 4, "its shape holds"},
    {"{" ENTRY("a", "F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, "9 dimensions"},
    {"{" ENTRY("a", "F32", "[9223372036854775807,3]", "0", "4") "}", 4, "overflows"},
    {"{" ENTRY("a", "F32", "[4611686018427387905]", "0", "4") "}", 4, "size of its shape"},
    {"{" ENTRY("a", "F32", "[3]", "0", "8") "}", 8, "size of its shape"},
    {"{" ENTRY("a", "F32", "[99999999999999999999]", "0", "8") "}", 8, "its shape holds"},
    {"{" ENTRY("a", "F32", "[2]", "0", "8") "," ENTRY("b", "F32", "[2]", "4", "12") "}", 12,
     "overlap"},
    {"{" ENTRY("a", "F32", "[2]", "0", "8") "," ENTRY("b", "F32", "[1]", "12", "16") "}", 16,
     "gap"},
    {"{" ENTRY("a", "F32", "[2]", "0", "8") "}", 12, "follow the last tensor"},
    {"{" ENTRY("a", "F32", "[2]", "0", "8") "}", 7, "truncated"},
    {"{" ENTRY("a", "F32", "[1]", "0", "4") "," ENTRY("a", "F32", "[1]", "4", "8") "}", 8,
     "malformed safetensors header: duplicate"},
};

START_TEST(malformed_headers_are_refused)
{
    ck_assert_fails(open_raw(malformed[_i].header, malformed[_i].data_bytes), KT_ERROR_FORMAT,
                    malformed[_i].sentence);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), "raw.safetensors"));
}
END_TEST

START_TEST(absurd_header_lengths_are_refused)
{
    static const uint64_t lengths[] = {3, 4096, 100000001, UINT32_MAX, UINT64_MAX, UINT64_MAX - 7};
    struct kt_checkpoint *c;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        write_raw("raw.safetensors", lengths[i], "{}", 0);
        ck_assert_fails(kt_checkpoint_open(fixture_context, fixture_path("raw.safetensors"), &c),
                        KT_ERROR_FORMAT, "header");
        ck_assert_ptr_null(c);
    }
    fixture_write("short", "1234567", 7);
    ck_assert_fails(kt_checkpoint_open(fixture_context, fixture_path("short"), &c), KT_ERROR_FORMAT,
                    "truncated");
    fixture_write("empty", "", 0);
    ck_assert_fails(kt_checkpoint_open(fixture_context, fixture_path("empty"), &c), KT_ERROR_FORMAT,
                    "truncated");
}
END_TEST

START_TEST(unknown_dtypes_are_kept)
{
    struct kt_checkpoint *c;
    const char *header = "{" ENTRY("q", "F4_WEIRD", "[5]", "0", "3") "}";
    write_raw("raw.safetensors", strlen(header), header, 3);
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, fixture_path("raw.safetensors"), &c),
                     KT_OK);
    const struct kt_tensor *t = kt_checkpoint_find(c, "q");
    ck_assert_int_eq(t->dtype, KT_DTYPE_UNKNOWN);
    ck_assert_str_eq(t->dtype_name, "F4_WEIRD");
    ck_assert_uint_eq(t->bytes, 3);
    kt_checkpoint_close(c);
}
END_TEST

static const float floats[6] = {1, 2, 3, 4, 5, 6};
static const uint16_t halves[4] = {10, 20, 30, 40};

static void write_two(const char *file, const char *first, const char *second)
{
    const struct kt_tensor tensors[] = {
        {.name = first,
         .dtype = KT_DTYPE_F32,
         .ndim = 2,
         .shape = {2, 3},
         .data = floats,
         .bytes = 24},
        {.name = second,
         .dtype = KT_DTYPE_BF16,
         .ndim = 1,
         .shape = {4},
         .data = halves,
         .bytes = 8},
    };
    static const char *const metadata[] = {"format", "pt", NULL};
    ck_assert_int_eq(
        kt_safetensors_write(fixture_context, fixture_path(file), tensors, 2, metadata), KT_OK);
}

START_TEST(what_is_written_is_read)
{
    struct kt_checkpoint *c;
    write_two("model.safetensors", "z.weight", "a.weight");
    ck_assert_int_eq(fixture_files(0), 1);
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, fixture_folder, &c), KT_OK);
    ck_assert_uint_eq(c->num_tensors, 2);
    ck_assert_str_eq(c->tensors[0].name, "a.weight");
    const struct kt_tensor *t = kt_checkpoint_find(c, "z.weight");
    ck_assert_int_eq(t->dtype, KT_DTYPE_F32);
    ck_assert_int_eq(t->ndim, 2);
    ck_assert_int_eq(t->shape[1], 3);
    ck_assert_mem_eq(t->data, floats, sizeof floats);
    ck_assert_uint_eq((uintptr_t)t->data % 8, 0);
    ck_assert_mem_eq(c->tensors[0].data, halves, sizeof halves);
    ck_assert_ptr_null(kt_checkpoint_find(c, "z.weigh"));
    kt_checkpoint_close(c);
}
END_TEST

static void write_index(const char *text)
{
    fixture_write("model.safetensors.index.json", text, strlen(text));
}

START_TEST(shards_are_found_through_the_index)
{
    struct kt_checkpoint *c;
    write_two("s1.safetensors", "a", "b");
    write_two("s2.safetensors", "c", "d");
    write_index("{\"weight_map\":{\"a\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}}");
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, fixture_folder, &c), KT_OK);
    ck_assert_uint_eq(c->num_tensors, 4);
    ck_assert_uint_eq(c->num_files, 2);
    ck_assert_ptr_nonnull(strstr(kt_checkpoint_find(c, "d")->file, "s2.safetensors"));
    kt_checkpoint_close(c);
}
END_TEST

START_TEST(broken_checkpoints_are_refused)
{
    struct kt_checkpoint *c;
    kt_context *ctx = fixture_context;
    struct stat info;
    write_two("s1.safetensors", "a", "b");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_NOT_FOUND, "neither");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_path("none"), &c), KT_ERROR_NOT_FOUND, "none");
    write_index("{\"weight_map\":{\"a\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}}");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_NOT_FOUND,
                    "s2.safetensors");
    write_two("s2.safetensors", "x", "y");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_NOT_FOUND, "tensor c");
    write_two("s2.safetensors", "c", "b");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_FORMAT,
                    "tensor b is in both");
    ck_assert_int_eq(stat(fixture_path("s2.safetensors"), &info), 0);
    ck_assert_int_eq(truncate(fixture_path("s2.safetensors"), info.st_size - 1), 0);
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_FORMAT, "truncated");
    write_index("{\"weight_map\":{\"a\":\"../s1.safetensors\"}}");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_FORMAT, "no file name");
    write_index("{\"weight_map\":{\"a\":7}}");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_FORMAT, "no file name");
    write_index("{\"weight_map\":{}}");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_FORMAT, "weight_map");
    write_index("{\"weight_map\":");
    ck_assert_fails(kt_checkpoint_open(ctx, fixture_folder, &c), KT_ERROR_FORMAT, "index.json");
}
END_TEST

START_TEST(writer_checks_its_input)
{
    struct kt_tensor t[2] = {
        {.name = "a", .dtype = KT_DTYPE_F32, .ndim = 1, .shape = {6}, .data = floats, .bytes = 20}};
    ck_assert_fails(kt_safetensors_write(fixture_context, fixture_path("f"), t, 1, NULL),
                    KT_ERROR_INVALID_ARGUMENT, "tensor a");
    t[0].bytes = 24;
    t[1] = t[0];
    ck_assert_fails(kt_safetensors_write(fixture_context, fixture_path("f"), t, 2, NULL),
                    KT_ERROR_INVALID_ARGUMENT, "twice");
    ck_assert_fails(kt_safetensors_write(fixture_context, fixture_path("no/f"), t, 1, NULL),
                    KT_ERROR_IO, "No such file");
    ck_assert_int_eq(fixture_files(0), 0);
}
END_TEST

/* A file-size limit stands in for a full disk: the write fails in the middle. */
START_TEST(failed_writes_leave_the_old_file)
{
    struct rlimit limit, small;
    char *big = calloc(1, 1 << 20);
    fixture_write("f", "old", 3);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = 100000;
    setrlimit(RLIMIT_FSIZE, &small);
    kt_status status = kt_atomic_write_file(fixture_context, fixture_path("f"), big, 1 << 20);
    setrlimit(RLIMIT_FSIZE, &limit);
    ck_assert_int_eq(status, KT_ERROR_IO);
    ck_assert_ptr_nonnull(strstr(kt_last_error(fixture_context), fixture_path("f")));
    ck_assert_int_eq(fixture_files(0), 1);
    char text[4] = "";
    FILE *f = fopen(fixture_path("f"), "r");
    ck_assert_uint_eq(fread(text, 1, 4, f), 3);
    fclose(f);
    ck_assert_str_eq(text, "old");
    free(big);
}
END_TEST

START_TEST(atomic_file_replaces_and_discards)
{
    struct kt_atomic_file *file;
    struct stat info;
    char *big = malloc(300000);
    memset(big, 'x', 300000);
    fixture_write("f", "old", 3);
    ck_assert_int_eq(kt_atomic_open(fixture_context, fixture_path("f"), &file), KT_OK);
    ck_assert_int_eq(kt_atomic_write(file, "ab", 2), KT_OK);
    kt_atomic_discard(file);
    ck_assert_int_eq(fixture_files(0), 1);
    ck_assert_int_eq(kt_atomic_open(fixture_context, fixture_path("f"), &file), KT_OK);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(kt_atomic_write(file, big, i == 1 ? 300000 : 50000), KT_OK);
    ck_assert_int_eq(kt_atomic_commit(file), KT_OK);
    ck_assert_int_eq(stat(fixture_path("f"), &info), 0);
    ck_assert_int_eq(info.st_size, 400000);
    ck_assert_int_eq(fixture_files(0), 1);
    free(big);
}
END_TEST

static long allocations_left;

static void *scarce_malloc(size_t size)
{
    if (allocations_left-- != 0)
        return malloc(size);
    errno = ENOMEM;
    return NULL;
}

/* Writes and reads back, with the allocation number `n` of jansson failing. */
static kt_status write_and_read(long n, const struct kt_tensor *tensors, size_t num)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    struct kt_checkpoint *c;
    allocations_left = n;
    kt_status status = kt_safetensors_write(fixture_context, fixture_path("m.safetensors"), tensors,
                                            num, metadata);
    allocations_left = -1;
    if (status != KT_OK)
        return status;
    ck_assert_int_eq(kt_checkpoint_open(fixture_context, fixture_path("m.safetensors"), &c), KT_OK);
    for (size_t i = 0; i < num; i++)
        ck_assert_ptr_nonnull(kt_checkpoint_find(c, tensors[i].name));
    kt_checkpoint_close(c);
    return KT_OK;
}

START_TEST(a_header_is_written_whole_or_not_at_all)
{
    char names[40][40];
    float data[4] = {0};
    struct kt_tensor tensors[40] = {{0}};
    for (int i = 0; i < 40; i++) {
        snprintf(names[i], sizeof names[i], "base_model.model.layers.%d.lora_A", i);
        tensors[i] = (struct kt_tensor){
            .name = names[i], .dtype = KT_DTYPE_F32, .ndim = 2, .data = data, .bytes = sizeof data};
        tensors[i].shape[0] = tensors[i].shape[1] = 2;
    }
    json_set_alloc_funcs(scarce_malloc, free);
    kt_status status = KT_ERROR_OUT_OF_MEMORY;
    long n = 0;
    for (; status == KT_ERROR_OUT_OF_MEMORY; n++)
        status = write_and_read(n, tensors, 40);
    json_set_alloc_funcs(malloc, free);
    ck_assert_int_eq(status, KT_OK);
    ck_assert_int_gt(n, 400);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("safetensors", .setup = fixture_setup, .teardown = fixture_teardown),
        LOOP(malformed_headers_are_refused, sizeof malformed / sizeof *malformed),
        TEST(absurd_header_lengths_are_refused),
        TEST(unknown_dtypes_are_kept),
        TEST(what_is_written_is_read),
        TEST(shards_are_found_through_the_index),
        TEST(broken_checkpoints_are_refused),
        TEST(writer_checks_its_input),
        TEST(a_header_is_written_whole_or_not_at_all),
        TEST(failed_writes_leave_the_old_file),
        TEST(atomic_file_replaces_and_discards),
    };
    return RUN_TESTS("safetensors", tests);
}
