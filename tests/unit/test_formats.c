/* SPDX-License-Identifier: Apache-2.0 */
#include "fixture.h"
#include "formats/zstd_file.h"
#include "main.h"

static char numbers[70000];

static void write_state(void)
{
    for (size_t i = 0; i < sizeof numbers; i++)
        numbers[i] = (char)(i * i >> 7);
    const struct kt_section sections[] = {
        {"moments", numbers, sizeof numbers}, {"step", "\x2a\0\0\0", 4}, {"empty", NULL, 0}};
    ck_assert_int_eq(kt_zstd_write(fixture_context, fixture_path("s"), "optimizer", 3, sections, 3),
                     KT_OK);
}

START_TEST(state_survives_a_round_trip)
{
    struct kt_zstd_file *f;
    char back[sizeof numbers];
    uint64_t bytes;
    write_state();
    ck_assert_int_eq(fixture_files(0), 1);
    ck_assert_int_eq(kt_zstd_open(fixture_context, fixture_path("s"), "optimizer", 3, &f), KT_OK);
    ck_assert_int_eq(kt_zstd_read(f, "moments", back, sizeof back), KT_OK);
    ck_assert_mem_eq(back, numbers, sizeof back);
    ck_assert(kt_zstd_has(f, "step", &bytes));
    ck_assert_uint_eq(bytes, 4);
    ck_assert_int_eq(kt_zstd_read(f, "empty", back, 0), KT_OK);
    ck_assert(!kt_zstd_has(f, "other", NULL));
    ck_assert_fails(kt_zstd_read(f, "other", back, 4), KT_ERROR_NOT_FOUND, "\"other\"");
    ck_assert_fails(kt_zstd_read(f, "step", back, 8), KT_ERROR_MISMATCH, "4 bytes where 8");
    kt_zstd_close(f);
}
END_TEST

START_TEST(state_of_another_kind_is_refused)
{
    struct kt_zstd_file *f;
    kt_context *ctx = fixture_context;
    write_state();
    ck_assert_fails(kt_zstd_open(ctx, fixture_path("s"), "sampler", 3, &f), KT_ERROR_FORMAT,
                    "\"sampler\"");
    ck_assert_fails(kt_zstd_open(ctx, fixture_path("s"), "optimizer", 2, &f), KT_ERROR_UNSUPPORTED,
                    "version 3");
    ck_assert_fails(kt_zstd_open(ctx, fixture_path("t"), "optimizer", 3, &f), KT_ERROR_NOT_FOUND,
                    "/t");
    fixture_write("t", "text", 4);
    ck_assert_fails(kt_zstd_open(ctx, fixture_path("t"), "optimizer", 3, &f), KT_ERROR_FORMAT,
                    "not a file of kind");
}
END_TEST

START_TEST(section_names_are_checked)
{
    char name[300];
    const struct kt_section twice[] = {{"a", "1", 1}, {"b", "2", 1}, {"a", "3", 1}};
    const struct kt_section none[] = {{"", "1", 1}}, longest[] = {{name, "1", 1}};
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    kt_context *ctx = fixture_context;
    ck_assert_fails(kt_zstd_write(ctx, fixture_path("s"), "k", 1, twice, 3),
                    KT_ERROR_INVALID_ARGUMENT, "twice");
    ck_assert_fails(kt_zstd_write(ctx, fixture_path("s"), "k", 1, none, 1),
                    KT_ERROR_INVALID_ARGUMENT, "1 to 255");
    ck_assert_fails(kt_zstd_write(ctx, fixture_path("s"), "k", 1, longest, 1),
                    KT_ERROR_INVALID_ARGUMENT, "1 to 255");
    ck_assert_int_eq(fixture_files(0), 0);
}
END_TEST

static bool reads_back(void)
{
    struct kt_zstd_file *f;
    char back[sizeof numbers];
    bool same = false;
    if (kt_zstd_open(fixture_context, fixture_path("s"), "optimizer", 3, &f) == KT_OK) {
        same = kt_zstd_read(f, "moments", back, sizeof back) == KT_OK;
        if (same)
            ck_assert_mem_eq(back, numbers, sizeof back);
        kt_zstd_close(f);
    }
    return same;
}

/* Whatever byte is damaged or wherever the file ends, wrong data never come back as right. */
START_TEST(damaged_state_is_never_taken_for_data)
{
    static char file[1 << 18];
    write_state();
    FILE *f = fopen(fixture_path("s"), "rb");
    size_t size = fread(file, 1, sizeof file, f), refused = 0;
    fclose(f);
    ck_assert(reads_back());
    for (size_t i = 0; i < size; i += i < 200 ? 1 : 97) {
        file[i] ^= 0x55;
        fixture_write("s", file, size);
        file[i] ^= 0x55;
        refused += !reads_back();
    }
    ck_assert_uint_gt(refused, 100);
    for (size_t i = 0; i < size; i += i < 200 ? 1 : 97) {
        fixture_write("s", file, i);
        ck_assert(!reads_back());
    }
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("formats", .setup = fixture_setup, .teardown = fixture_teardown),
        TEST(state_survives_a_round_trip),
        TEST(state_of_another_kind_is_refused),
        TEST(section_names_are_checked),
        TEST(damaged_state_is_never_taken_for_data),
    };
    return RUN_TESTS("formats", tests);
}
