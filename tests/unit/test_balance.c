/* SPDX-License-Identifier: Apache-2.0 */
/* What a balance finds, on hosts and devices that are made up. */
#include <string.h>

#include "main.h"
#include "placement/balance.h"
#include "placement/share.h"

enum { EXPERTS = 64, LAYERS = 26 };

/** What is true of a machine, in what tables tell: about 1 for an expert on either side. */
struct machine {
    double host;      /**< seconds of an expert that tables tell 1 of, with the device idle */
    double contended; /**< how many times as long, while the device reads memory, too */
    double device;    /**< the same of the device */
    double lead;      /**< seconds of each layer's supply that the device is ahead */
    double other;     /**< seconds of a layer beside its experts */
    double fixed;     /**< seconds of a host before it begins */
    int resident;     /**< experts that have not to travel */
    double travel;    /**< what tables tell of an expert that travels; 0 = 1 */
    double noise;     /**< of seconds of a pass, up or down */
    double cold_host, cold_device; /**< so many times as long in the first pass; 0 = 1 */
};

struct pass {
    double seconds;
    struct kt_balance_measure measure;
};

/** Rows as routing gives them: some experts have three times as many as others. */
static void told_of_layer(const struct machine *m, int layer, struct kt_share_cost *costs)
{
    for (int e = 0; e < EXPERTS; e++) {
        double rows = 1 + 0.5 * ((e * 7 + layer * 5) % 5);
        costs[e] = (struct kt_share_cost){.host = 0.5 + 0.25 * rows,
                                          .device = e < m->resident ? 0.02 * rows
                                                    : m->travel > 0 ? m->travel
                                                                    : 1,
                                          .coming = e < m->resident};
    }
}

static void divide(const struct kt_balance *b, const struct kt_share_cost *told, uint8_t *chosen)
{
    struct kt_share_cost scaled[EXPERTS];
    int32_t order[EXPERTS];
    memcpy(scaled, told, sizeof scaled);
    for (int e = 0; e < EXPERTS; e++)
        scaled[e].host *= (double)b->scale / 1000;
    memset(chosen, b->mode == KT_BALANCE_DEVICE, EXPERTS);
    if (b->mode == KT_BALANCE_BOTH)
        kt_share_choose(scaled, EXPERTS, 0, kt_balance_worth_it(b), order, chosen);
}

static double later(double a, double b)
{
    return a > b ? a : b;
}

/** The machine as it is in its first pass. */
static struct machine cold(const struct machine *m)
{
    struct machine cold = *m;
    cold.host *= m->cold_host > 0 ? m->cold_host : 1;
    cold.device *= m->cold_device > 0 ? m->cold_device : 1;
    return cold;
}

static void run_layer(const struct machine *m, const struct kt_balance *b, int layer,
                      struct pass *pass)
{
    struct kt_share_cost told[EXPERTS];
    uint8_t chosen[EXPERTS];
    double host = 0, device = 0;
    struct kt_balance_measure *of = &pass->measure;
    told_of_layer(m, layer, told);
    divide(b, told, chosen);
    for (int e = 0; e < EXPERTS; e++) {
        of->host_all += told[e].host;
        of->device_all += told[e].device;
        *(chosen[e] ? &device : &host) += chosen[e] ? told[e].device : told[e].host;
    }
    double d = device > 0 ? later(m->device * device - m->lead, 0) : 0;
    double alone = host * m->host, h = alone;
    if (host > 0) /* slowed down while the device is busy */
        h = m->fixed +
            (alone * m->contended < d ? alone * m->contended : d + (alone - d / m->contended));
    bool looks = b->trial < KT_BALANCE_SETTLED && b->mode != KT_BALANCE_HOST;
    if (looks && host > 0) {
        of->host += host;
        of->host_seconds += h;
    }
    if (looks && device > 0) {
        of->device += device;
        of->device_seconds += later(h, d);
        of->waited += later(0, d - h);
    }
    pass->seconds += m->other + later(h, d);
}

static double run_pass(const struct machine *m, const struct kt_balance *b, uint64_t *seed,
                       struct kt_balance_measure *measure)
{
    struct pass pass = {0};
    struct machine now = b->trial ? *m : cold(m);
    for (int l = 0; l < LAYERS; l++)
        run_layer(&now, b, l, &pass);
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    double noise = m->noise * ((double)(*seed >> 33) / (1u << 30) - 1);
    pass.measure.seconds = pass.seconds * (1 + noise);
    *measure = pass.measure;
    return pass.seconds;
}

/** A pass, counted and decided upon; its true seconds. */
static double step(const struct machine *m, struct kt_balance *b, uint64_t *seed,
                   enum kt_balance_event *event)
{
    struct kt_balance_measure measure;
    double seconds = run_pass(m, b, seed, &measure);
    kt_balance_count(b, &measure);
    *event = kt_balance_decide(b);
    return seconds;
}

/** Without noise, whatever it is at. */
static double seconds_of(const struct machine *m, int32_t mode, int64_t scale)
{
    struct kt_balance b;
    struct kt_balance_measure measure;
    uint64_t seed = 1;
    kt_balance_init(&b);
    b.trial = 1;
    b.mode = mode;
    b.scale = scale;
    return run_pass(m, &b, &seed, &measure);
}

/** Of all scales there are. */
static double best_shared(const struct machine *m)
{
    double best = 1e30;
    for (double scale = 20; scale < 1e6; scale *= 1.02) {
        double seconds = seconds_of(m, KT_BALANCE_BOTH, (int64_t)scale);
        best = seconds < best ? seconds : best;
    }
    return best;
}

/** The host of a table twice too optimistic beside PCIe; others slower, faster and contended. */
static const struct machine machines[] = {
    {.host = 1, .contended = 1, .device = 1, .other = 6},
    {.host = 0.5, .contended = 2, .device = 1, .lead = 4, .other = 6},
    {.host = 2, .contended = 2, .device = 1, .lead = 4, .other = 6},
    {.host = 2, .contended = 1.3, .device = 1.15, .lead = 10, .other = 6, .fixed = 5},
    {.host = 10, .contended = 1.5, .device = 1, .other = 20, .fixed = 5},
    {.host = 60, .contended = 1, .device = 1, .other = 20, .fixed = 5}, /* hopeless */
    {.host = 0.2, .contended = 1, .device = 4, .other = 6},
    {.host = 0.05, .contended = 3, .device = 5, .other = 6}, /* a slow link */
    {.host = 1, .contended = 2, .device = 1, .other = 6, .resident = 9},
    {.host = 1, .contended = 2, .device = 1, .other = 6, .resident = 60},
    {.host = 1, .contended = 2, .device = 1, .other = 6, .resident = EXPERTS},
    {.host = 1, .contended = 2, .device = 0.7, .lead = 15, .other = 20, .fixed = 30},
    {.host = 0.8, .contended = 2, .device = 1, .other = 6, .noise = 0.02},
    {.host = 3, .contended = 2, .device = 1, .other = 6, .noise = 0.02},
    {.host = 2, .contended = 2, .device = 1, .other = 6, .cold_host = 5, .cold_device = 1},
    {.host = 2, .contended = 2, .device = 1, .other = 6, .cold_host = 1, .cold_device = 5},
    {.host = 2, .contended = 2, .device = 1, .other = 6, .cold_host = 9, .cold_device = 9},
    {.host = 0.3, .contended = 2, .device = 1, .other = 6, .cold_device = 20},
};
enum { MACHINES = sizeof machines / sizeof *machines };

static double best_alone(const struct machine *m)
{
    double device = seconds_of(m, KT_BALANCE_DEVICE, 1000);
    double host = seconds_of(m, KT_BALANCE_HOST, 1000);
    return device < host ? device : host;
}

/** Passes until it has settled; *latest is what the latest shared one took. */
static int settle(const struct machine *m, struct kt_balance *b, uint64_t *seed, double *latest)
{
    enum kt_balance_event event = KT_BALANCE_NOTHING;
    int passes = 0;
    kt_balance_init(b);
    for (; b->trial != KT_BALANCE_SETTLED; passes++) {
        bool both = b->mode == KT_BALANCE_BOTH;
        double seconds = step(m, b, seed, &event);
        *latest = both ? seconds : *latest;
        ck_assert_int_eq(event == KT_BALANCE_FOUND, b->trial == KT_BALANCE_SETTLED);
    }
    return passes;
}

START_TEST(a_balance_is_found_in_few_passes)
{
    const struct machine *m = &machines[_i];
    struct kt_balance b;
    uint64_t seed = 7;
    double shared = best_shared(m), alone = best_alone(m), latest = 0;
    int passes = settle(m, &b, &seed, &latest);
    ck_assert_int_le(passes, KT_BALANCE_SETTLED);
    ck_assert_double_le(latest, 1.15 * shared);
    ck_assert_double_le(seconds_of(m, b.mode, b.scale), 1.03 * (shared < alone ? shared : alone));
}
END_TEST

/** Where host and device are a match, both together are much faster than either. */
START_TEST(a_balance_is_faster_than_either_side)
{
    static const int matched[] = {0, 2, 3, 8};
    const struct machine *m = &machines[matched[_i]];
    struct kt_balance b;
    uint64_t seed = 7;
    double latest = 0;
    settle(m, &b, &seed, &latest);
    ck_assert_int_eq(b.mode, KT_BALANCE_BOTH);
    ck_assert_double_ge(best_alone(m), 1.2 * seconds_of(m, b.mode, b.scale));
}
END_TEST

/** What held the device up in its first pass alone does not decide. */
START_TEST(a_device_that_was_close_gets_another_pass)
{
    const struct machine *m = &machines[11];
    struct kt_balance b;
    struct kt_balance_measure measure;
    uint64_t seed = 7;
    double shared = 1e30, alone = seconds_of(m, KT_BALANCE_DEVICE, 1000);
    kt_balance_init(&b);
    while (b.trial != KT_BALANCE_SETTLED) {
        double seconds = run_pass(m, &b, &seed, &measure);
        if (b.trial && b.mode == KT_BALANCE_BOTH)
            shared = seconds < shared ? seconds : shared;
        if (b.trial == 1)
            measure.seconds = 1.25 * alone;
        kt_balance_count(&b, &measure);
        (void)kt_balance_decide(&b);
    }
    ck_assert(alone < shared && 1.25 * alone > shared && 1.25 * alone < 1.15 * shared);
    ck_assert_int_eq(b.mode, KT_BALANCE_DEVICE);
}
END_TEST

/** A side that has no chance is not tried. */
START_TEST(a_hopeless_side_gets_no_pass)
{
    struct kt_balance b;
    struct machine slow_host = {.host = 60, .contended = 1, .device = 1, .other = 6};
    struct machine slow_link = {.host = 1, .contended = 1, .device = 1, .other = 6, .travel = 20};
    uint64_t seed = 7;
    double latest = 0;
    settle(&slow_host, &b, &seed, &latest);
    ck_assert(!b.scores[KT_BALANCE_HOST] && b.scores[KT_BALANCE_DEVICE]);
    settle(&slow_link, &b, &seed, &latest);
    ck_assert(!b.scores[KT_BALANCE_DEVICE] && b.scores[KT_BALANCE_HOST]);
}
END_TEST

/** Passes that became slower than a side alone was are given up within a window, and none that are
 * as fast as they were. */
START_TEST(a_settled_balance_switches_when_it_has_become_slower)
{
    struct machine m = machines[2];
    struct kt_balance b;
    enum kt_balance_event event = KT_BALANCE_NOTHING;
    uint64_t seed = 7;
    double latest = 0;
    m.noise = 0.03;
    settle(&m, &b, &seed, &latest);
    struct kt_balance found = b;
    for (int i = 0; i < 100; i++) {
        step(&m, &b, &seed, &event);
        ck_assert_int_eq(event, KT_BALANCE_NOTHING);
        ck_assert(b.mode == KT_BALANCE_BOTH && b.scale == found.scale);
    }
    m.host *= 4; /* somebody else uses the CPU */
    int passes = 0;
    do
        step(&m, &b, &seed, &event);
    while (++passes < 2 * KT_BALANCE_WINDOW && event == KT_BALANCE_NOTHING);
    ck_assert_int_eq(event, KT_BALANCE_SWITCHED);
    ck_assert_int_eq(b.mode, KT_BALANCE_DEVICE);
    ck_assert_int_eq(b.window, 2 * KT_BALANCE_WINDOW);
    for (int i = 0; i < 4 * KT_BALANCE_WINDOW; i++) {
        ck_assert_double_le(step(&m, &b, &seed, &event), seconds_of(&m, KT_BALANCE_DEVICE, 1000));
        ck_assert_int_eq(event, KT_BALANCE_NOTHING);
    }
}
END_TEST

/** After any number of passes: what a checkpoint takes stands without a side alone. */
START_TEST(holding_tries_no_side_alone)
{
    struct kt_balance b;
    enum kt_balance_event event;
    uint64_t seed = 7;
    kt_balance_init(&b);
    for (int i = 0; i < _i; i++)
        step(&machines[2], &b, &seed, &event);
    (void)kt_balance_hold(&b);
    ck_assert_int_eq(b.trial, _i ? KT_BALANCE_SETTLED : 0);
    ck_assert_int_eq(b.mode, KT_BALANCE_BOTH);
    for (int i = 0; i < 8; i++) {
        struct kt_balance before = b;
        struct kt_balance_measure measure;
        for (int pass = 0; pass < 3; pass++) {
            run_pass(&machines[2], &b, &seed, &measure);
            kt_balance_count(&b, &measure);
            ck_assert(b.scale == before.scale && b.mode == before.mode);
        }
        (void)kt_balance_hold(&b);
        ck_assert_int_eq(b.mode, KT_BALANCE_BOTH);
    }
    ck_assert_int_eq(b.trial, KT_BALANCE_SETTLED);
    if (_i >= 5) /* before, the search has not come as far */
        ck_assert_double_le(seconds_of(&machines[2], b.mode, b.scale),
                            1.1 * best_shared(&machines[2]));
}
END_TEST

/** Records that are taken often: one slow pass is none to decide by. */
START_TEST(holding_looks_back_over_a_window)
{
    struct kt_balance b;
    struct kt_balance_measure measure;
    struct machine slow = machines[2];
    uint64_t seed = 7;
    double latest = 0;
    settle(&machines[2], &b, &seed, &latest);
    slow.host *= 4;
    for (int i = 1; i <= KT_BALANCE_WINDOW; i++) {
        run_pass(&slow, &b, &seed, &measure);
        kt_balance_count(&b, &measure);
        ck_assert_int_eq(kt_balance_hold(&b),
                         i < KT_BALANCE_WINDOW ? KT_BALANCE_NOTHING : KT_BALANCE_SWITCHED);
    }
}
END_TEST

/** What is read decides as what was written, but for passes of a window that has begun. */
START_TEST(a_record_is_exact)
{
    struct kt_balance b, read;
    enum kt_balance_event event, again;
    char text[KT_BALANCE_TEXT], second[KT_BALANCE_TEXT];
    uint64_t seed = 7, same;
    kt_balance_init(&b);
    for (int i = 0; i < _i; i++)
        step(&machines[13], &b, &seed, &event);
    (void)kt_balance_hold(&b);
    int length = kt_balance_write(&b, text);
    ck_assert_int_eq(length, (int)strlen(text));
    ck_assert_int_eq(kt_balance_read(&read, text), length);
    same = seed;
    b.passes = 0;
    b.since = (struct kt_balance_measure){0};
    for (int i = 0; i < 3 * KT_BALANCE_WINDOW; i++) {
        ck_assert(step(&machines[13], &b, &seed, &event) ==
                  step(&machines[13], &read, &same, &again));
        ck_assert_int_eq(event, again);
    }
    kt_balance_write(&b, text);
    kt_balance_write(&read, second);
    ck_assert_str_eq(text, second);
}
END_TEST

START_TEST(other_texts_are_no_record)
{
    static const char *const bad[] = {
        "",
        "1",
        "2,0,2000,1000,2000,2000,16,0,0",
        "2,0,2000,1000,2000,2000,16,0,0,",
        "2,0,2000,1000,2000,2000,16,0,0,x",
        "1,0,2000,1000,2000,2000,16,0,0,0",
        "8,0,2000,1000,2000,2000,16,0,0,0",
        "2,3,2000,1000,2000,2000,16,0,0,0",
        "2,0,0,1000,2000,2000,16,0,0,0",
        "2,0,2000,1000,2000,2000,0,0,0,0",
        "2,0,2000,1000,-1,2000,16,0,0,0",
        "2,0,2000,1000,2000,2000,99999999999999999999,0,0,0",
        " 2,0,2000,1000,2000,2000,16,0,0,0",
    };
    struct kt_balance b;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_int_eq(kt_balance_read(&b, bad[i]), 0);
    ck_assert_int_eq(kt_balance_read(&b, "2,0,2000,1000,2000,2000,16,0,0,0 and more"), 32);
}
END_TEST

int main(void)
{
    const struct test tests[] = {
        LOOP(a_balance_is_found_in_few_passes, MACHINES),
        LOOP(a_balance_is_faster_than_either_side, 4),
        TEST(a_device_that_was_close_gets_another_pass),
        TEST(a_hopeless_side_gets_no_pass),
        TEST(a_settled_balance_switches_when_it_has_become_slower),
        LOOP(holding_tries_no_side_alone, 8),
        TEST(holding_looks_back_over_a_window),
        LOOP(a_record_is_exact, 10),
        TEST(other_texts_are_no_record),
    };
    return RUN_TESTS("balance", tests);
}
