/* SPDX-License-Identifier: Apache-2.0 */
#include "compare.h"
#include "main.h"

static kt_context *ctx;
static kt_batch *batch;

static void setup(void)
{
    ctx = test_context(1, 0);
    ck_assert_int_eq(kt_batch_create(ctx, &batch), KT_OK);
}

static void teardown(void)
{
    kt_batch_free(batch);
    kt_context_free(ctx);
}

START_TEST(sequences_are_packed)
{
    const int32_t ids[] = {5, 6, 7, 8}, labels[] = {KT_IGNORE_LABEL, 6, KT_IGNORE_LABEL, 8};
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(kt_batch_add(batch, ids, labels, 4), KT_OK);
        ck_assert_int_eq(kt_batch_add(batch, ids, NULL, 3), KT_OK);
    }
    ck_assert_uint_eq(kt_batch_num_sequences(batch), 200);
    ck_assert_uint_eq(kt_batch_num_tokens(batch), 700);
    ck_assert_uint_eq(kt_batch_num_targets(batch), 200);
    for (int s = 0; s < 200; s++) {
        int32_t begin = kt_batch_cu_seqlens(batch)[s], end = kt_batch_cu_seqlens(batch)[s + 1];
        ck_assert_int_eq(end - begin, s % 2 ? 3 : 4);
        for (int32_t t = begin; t < end; t++) {
            ck_assert_int_eq(kt_batch_input_ids(batch)[t], ids[t - begin]);
            ck_assert_int_eq(kt_batch_labels(batch)[t],
                             s % 2 ? KT_IGNORE_LABEL : labels[t - begin]);
        }
    }
    kt_batch_clear(batch);
    ck_assert_uint_eq(kt_batch_num_tokens(batch), 0);
    ck_assert_uint_eq(kt_batch_num_targets(batch), 0);
    ck_assert_int_eq(kt_batch_cu_seqlens(batch)[0], 0);
}
END_TEST

START_TEST(bad_sequences_are_refused_and_change_nothing)
{
    const int32_t ids[] = {5, 6}, labels[] = {5, -7};
    ck_assert_int_eq(kt_batch_add(batch, ids, NULL, 0), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_int_eq(kt_batch_add(batch, ids, labels, 2), KT_ERROR_INVALID_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(kt_last_error(ctx), "label -7 of token 1"));
    ck_assert_int_eq(kt_batch_add(batch, ids, NULL, (size_t)INT32_MAX + 1),
                     KT_ERROR_INVALID_ARGUMENT);
    ck_assert_uint_eq(kt_batch_num_tokens(batch), 0);
    ck_assert_uint_eq(kt_batch_num_sequences(batch), 0);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        GROUP("batch", .setup = setup, .teardown = teardown),
        TEST(sequences_are_packed),
        TEST(bad_sequences_are_refused_and_change_nothing),
    };
    return RUN_TESTS("batch", tests);
}
