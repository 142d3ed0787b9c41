/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of the slots of a batch, whole and shared. */
#include "expert_call.h"
#include "main.h"

enum { TOKENS = 4, TOPK = 3, EXPERTS = 4, SLOTS = TOKENS * TOPK };

/* Expert 1 has none; the second token chooses expert 3 twice; others are out of range. */
static const int32_t ids[SLOTS] = {3, 0, 2, 3, 2, 3, 0, -1, 2, EXPERTS, 2, INT32_MAX};

static void check_routing(const struct kt_routing *r, const int64_t *first, const int32_t *slots,
                          const int32_t *rows)
{
    for (int e = 0; e <= EXPERTS; e++)
        ck_assert_int_eq(r->first[e], first[e]);
    for (int64_t i = 0; i < first[EXPERTS]; i++)
        ck_assert_int_eq(r->slots[i], slots[i]);
    for (int s = 0; s < SLOTS; s++)
        ck_assert_int_eq(r->rows[s], rows[s]);
}

START_TEST(rows_are_in_the_order_of_experts)
{
    static const int64_t first[EXPERTS + 1] = {0, 2, 2, 6, 9};
    static const int32_t slots[] = {1, 6, 2, 4, 8, 10, 0, 3, 5};
    static const int32_t rows[SLOTS] = {0, 2, 6, 3, 7, 8, 1, 4, -1, 5, -1, -1};
    struct kt_routing r = test_route(TOKENS, TOPK, EXPERTS, ids, NULL);
    check_routing(&r, first, slots, rows);
    test_unroute(&r);
}
END_TEST

START_TEST(a_share_keeps_the_numbers_of_slots)
{
    static const uint8_t chosen[EXPERTS] = {1, 1, 0, 1}, none[EXPERTS] = {0};
    static const int64_t first[EXPERTS + 1] = {0, 2, 2, 2, 5}, no_rows[EXPERTS + 1] = {0};
    static const int32_t slots[] = {1, 6, 0, 3, 5};
    static const int32_t rows[SLOTS] = {0, 2, -1, 3, 4, -1, 1, -1, -1, -1, -1, -1};
    int32_t absent[SLOTS];
    memset(absent, 0xff, sizeof absent);
    struct kt_routing whole = test_route(TOKENS, TOPK, EXPERTS, ids, NULL);
    struct kt_routing share = test_share(&whole, chosen), empty = test_share(&whole, none);
    check_routing(&share, first, slots, rows);
    ck_assert_ptr_eq(share.ids, ids);
    check_routing(&empty, no_rows, NULL, absent);
    test_unroute(&whole), test_unroute(&share), test_unroute(&empty);
}
END_TEST

START_TEST(all_slots_fit)
{
    static int32_t same[SLOTS];
    struct kt_routing all = test_route(TOKENS, TOPK, 1, same, NULL);
    ck_assert_int_eq(all.first[1], SLOTS);
    for (int s = 0; s < SLOTS; s++)
        ck_assert(all.slots[s] == s && all.rows[s] == s);
    test_unroute(&all);
    struct kt_routing none = test_route(0, TOPK, EXPERTS, NULL, NULL);
    ck_assert_int_eq(none.first[EXPERTS], 0);
    test_unroute(&none);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        TEST(rows_are_in_the_order_of_experts),
        TEST(a_share_keeps_the_numbers_of_slots),
        TEST(all_slots_fit),
    };
    return RUN_TESTS("routing", tests);
}
