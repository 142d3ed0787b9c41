/* SPDX-License-Identifier: Apache-2.0 */
/* Experts divided between two sides. */
#include "main.h"
#include "placement/share.h"

enum { EXPERTS = 8 };

/** When both are done. */
static double finish(const struct kt_share_cost *costs, const uint8_t *on_device)
{
    double host = 0, device = 0;
    for (int e = 0; e < EXPERTS; e++) {
        host += on_device[e] ? 0 : costs[e].host;
        device += on_device[e] ? costs[e].device : 0;
    }
    return host > device ? host : device;
}

static double best_finish(const struct kt_share_cost *costs)
{
    uint8_t on_device[EXPERTS];
    double best = 1e30;
    for (int set = 0; set < 1 << EXPERTS; set++) {
        for (int e = 0; e < EXPERTS; e++)
            on_device[e] = set >> e & 1;
        double seconds = finish(costs, on_device);
        best = seconds < best ? seconds : best;
    }
    return best;
}

/** Rows of experts as few as many, as routing gives them; the device takes as long for each. */
START_TEST(both_sides_end_at_about_the_same_time)
{
    struct kt_share_cost costs[EXPERTS];
    int32_t order[EXPERTS];
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = 0.1 * (1 + (e * 5 + _i) % EXPERTS) * (1 + _i),
                                          .device = 0.3};
    kt_share_choose(costs, EXPERTS, 0, 1, order, on_device);
    double best = best_finish(costs), got = finish(costs, on_device);
    ck_assert_double_ge(got, best - 1e-12);
    ck_assert_double_le(got, 1.34 * best);
}
END_TEST

START_TEST(many_rows_go_to_the_device_first)
{
    struct kt_share_cost costs[EXPERTS];
    int32_t order[EXPERTS];
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = e, .device = 4};
    kt_share_choose(costs, EXPERTS, 0, 1, order, on_device);
    for (int e = 1; e < EXPERTS; e++)
        ck_assert_int_ge(on_device[e], on_device[e - 1]);
    ck_assert(on_device[EXPERTS - 1] && !on_device[0]);
}
END_TEST

START_TEST(a_side_that_costs_nothing_does_all)
{
    struct kt_share_cost costs[EXPERTS];
    int32_t order[EXPERTS];
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = e, .device = 0};
    kt_share_choose(costs, EXPERTS, 0, 1, order, on_device);
    for (int e = 0; e < EXPERTS; e++)
        ck_assert_int_eq(on_device[e], e > 0); /* nobody chose expert 0 */
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = 1e-9, .device = 1};
    kt_share_choose(costs, EXPERTS, 0, 1, order, on_device);
    for (int e = 0; e < EXPERTS; e++)
        ck_assert_int_eq(on_device[e], 0);
}
END_TEST

/** What the host spends beside its experts can cost more than they would on the device. */
START_TEST(a_host_that_is_slow_to_begin_does_nothing)
{
    struct kt_share_cost costs[EXPERTS];
    int32_t order[EXPERTS];
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = 1, .device = 1};
    kt_share_choose(costs, EXPERTS, 1, 1, order, on_device);
    ck_assert(on_device[0] && !on_device[EXPERTS - 1]);
    kt_share_choose(costs, EXPERTS, 8, 1, order, on_device);
    for (int e = 0; e < EXPERTS; e++)
        ck_assert(on_device[e]);
}
END_TEST

/** One that travels in any case is not left to the host for one that gains more. */
START_TEST(experts_that_are_coming_go_to_the_device_first)
{
    struct kt_share_cost costs[EXPERTS];
    int32_t order[EXPERTS];
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = 1 + e, .device = 8, .coming = e < 2};
    kt_share_choose(costs, EXPERTS, 0, 1, order, on_device);
    ck_assert(on_device[0] && on_device[1] && on_device[EXPERTS - 1] && !on_device[2]);
}
END_TEST

START_TEST(a_gain_that_is_not_worth_it_leaves_all_to_the_device)
{
    struct kt_share_cost costs[EXPERTS];
    int32_t order[EXPERTS];
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS; e++)
        costs[e] = (struct kt_share_cost){.host = 3, .device = 1}; /* 6 and 2: 8 instead of 6 */
    kt_share_choose(costs, EXPERTS, 0, 1.3, order, on_device);
    ck_assert(on_device[0] && !on_device[EXPERTS - 1]);
    kt_share_choose(costs, EXPERTS, 0, 1.4, order, on_device);
    for (int e = 0; e < EXPERTS; e++)
        ck_assert_int_eq(on_device[e], 1);
}
END_TEST

/** Decoding: nothing travels for one token unless the host is hopeless; nobody chose expert 7. */
START_TEST(few_experts_are_computed_where_they_are)
{
    struct kt_share_cost costs[EXPERTS] = {0};
    uint8_t on_device[EXPERTS];
    for (int e = 0; e < EXPERTS - 1; e++)
        costs[e] = (struct kt_share_cost){.host = 2, .device = 1, .coming = e % 3 == 0};
    costs[1].host = 4;
    costs[EXPERTS - 1].coming = true;
    kt_share_choose_few(costs, EXPERTS, on_device);
    for (int e = 0; e < EXPERTS; e++)
        ck_assert_int_eq(on_device[e], e < EXPERTS - 1 && (e % 3 == 0 || e == 1));
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        LOOP(both_sides_end_at_about_the_same_time, 6),
        TEST(many_rows_go_to_the_device_first),
        TEST(a_side_that_costs_nothing_does_all),
        TEST(a_host_that_is_slow_to_begin_does_nothing),
        TEST(few_experts_are_computed_where_they_are),
        TEST(experts_that_are_coming_go_to_the_device_first),
        TEST(a_gain_that_is_not_worth_it_leaves_all_to_the_device),
    };
    return RUN_TESTS("share", tests);
}
