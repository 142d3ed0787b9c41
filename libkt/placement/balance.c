/* SPDX-License-Identifier: Apache-2.0 */
#include "placement/balance.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/** The very first pass is slow for other reasons. One of the device alone tells its rate, which
 * then errs on the side that the next passes can put right; another one decides where that was
 * close. */
enum { COLD = 0 };
static const uint8_t trials[KT_BALANCE_SETTLED] = {
    KT_BALANCE_BOTH, KT_BALANCE_DEVICE, KT_BALANCE_BOTH,  KT_BALANCE_BOTH,
    KT_BALANCE_BOTH, KT_BALANCE_HOST,   KT_BALANCE_DEVICE};

enum { THOUSAND = 1000, MAX_WINDOW = 1024 };
static const int64_t max_number = 1000000000000000;

/** Measured with "amx" on 16 threads, at 48 rows an expert: 2.0 forward, 2.2 backward. */
enum { HOST_BESIDE_DEVICE = 2 * THOUSAND };

/** By how much a host is faster, at most, when no device reads its memory. */
static const double host_alone = 3;

/** A device that was slower in its first pass than this is not tried again. */
static const double close_enough = 1.15;

/** A device whose told seconds alone are so many times those of the first pass is not tried. */
static const double device_slower = 2;

/** The host waited for less: the device was done first. */
static const double no_wait = 0.02;

/** By how much a device that was done first may be faster than was thought, for all we know. */
static const double faster = 0.93;

/** By which passes must have been slower than others to be given up. */
static const double slower = 1.05;

void kt_balance_init(struct kt_balance *b)
{
    *b = (struct kt_balance){.host = HOST_BESIDE_DEVICE,
                             .device = THOUSAND,
                             .scale = HOST_BESIDE_DEVICE,
                             .best_scale = HOST_BESIDE_DEVICE,
                             .window = KT_BALANCE_WINDOW};
}

double kt_balance_worth_it(const struct kt_balance *b)
{
    return b->trial == COLD ? 1.5 : 1;
}

void kt_balance_count(struct kt_balance *b, const struct kt_balance_measure *m)
{
    struct kt_balance_measure *s = &b->since;
    s->seconds += m->seconds;
    s->device_all += m->device_all;
    s->host_all += m->host_all;
    s->host += m->host;
    s->device += m->device;
    s->host_seconds += m->host_seconds;
    s->device_seconds += m->device_seconds;
    s->waited += m->waited;
    b->passes++;
}

static int64_t whole(double x)
{
    return x < 1 ? 1 : x > (double)max_number ? max_number : (int64_t)llround(x);
}

/** The host's rate is exact, the device's where the host waited for it. Else it is known only to
 * have been faster, and is taken to be a little more so: a device that is too slow then tells. */
static void note_rates(struct kt_balance *b)
{
    const struct kt_balance_measure *m = &b->since;
    if (m->host > 0)
        b->host = whole(THOUSAND * m->host_seconds / m->host);
    if (m->device > 0) {
        bool exact = m->waited > no_wait * m->device_seconds;
        int64_t device = whole(THOUSAND * m->device_seconds / m->device * (exact ? 1 : faster));
        if (exact || device < b->device)
            b->device = device;
    }
    b->scale = whole(THOUSAND * (double)b->host / (double)b->device);
}

static void note(struct kt_balance *b)
{
    const struct kt_balance_measure *m = &b->since;
    int64_t *score = &b->scores[b->mode];
    int64_t now = whole(1e6 * m->seconds / (double)(m->device_all > 0 ? m->device_all : 1));
    bool settled = b->trial == KT_BALANCE_SETTLED;
    if (settled || (b->trial != COLD && (!*score || now < *score))) {
        *score = now;
        b->best_scale = b->mode == KT_BALANCE_BOTH ? b->scale : b->best_scale;
    }
    if (!settled && b->mode != KT_BALANCE_HOST)
        note_rates(b);
}

/** The mode with the best score, or the one that it is in. */
static int32_t best_mode(const struct kt_balance *b)
{
    int32_t best = b->mode;
    for (int32_t i = 0; i < KT_BALANCE_MODES; i++)
        if (b->scores[i] && (!b->scores[best] || b->scores[i] < b->scores[best]))
            best = i;
    return best;
}

static void go_on_with(struct kt_balance *b, int32_t mode)
{
    b->mode = mode;
    if (mode == KT_BALANCE_BOTH && b->scores[mode])
        b->scale = b->best_scale;
}

/** Whether a side alone cannot be faster than what there was. */
static bool hopeless(const struct kt_balance *b, int32_t mode)
{
    const struct kt_balance_measure *m = &b->since;
    double score = (double)b->scores[best_mode(b)], best = 1e-6 * score * m->device_all;
    if (mode == KT_BALANCE_DEVICE && b->trial > KT_BALANCE_SETTLED / 2)
        return (double)b->scores[mode] > close_enough * score || !b->scores[mode];
    if (mode == KT_BALANCE_DEVICE)
        return m->device_all > device_slower * m->seconds;
    return best > 0 && 1e-3 * (double)b->host * m->host_all > host_alone * best;
}

/** To the next trial: of both, unless sides alone may be tried. */
static enum kt_balance_event next_trial(struct kt_balance *b, bool sides)
{
    while (b->trial < KT_BALANCE_SETTLED && trials[b->trial] != KT_BALANCE_BOTH &&
           (!sides || hopeless(b, trials[b->trial])))
        b->trial++;
    if (b->trial < KT_BALANCE_SETTLED) {
        b->mode = trials[b->trial];
        return KT_BALANCE_NOTHING;
    }
    go_on_with(b, best_mode(b));
    return KT_BALANCE_FOUND;
}

static enum kt_balance_event look_back(struct kt_balance *b)
{
    int32_t best = best_mode(b);
    if ((double)b->scores[best] * slower >= (double)b->scores[b->mode])
        return KT_BALANCE_NOTHING;
    go_on_with(b, best);
    b->window = b->window < MAX_WINDOW ? 2 * b->window : b->window;
    return KT_BALANCE_SWITCHED;
}

static enum kt_balance_event decide(struct kt_balance *b, bool sides)
{
    bool settled = b->trial == KT_BALANCE_SETTLED;
    note(b);
    b->trial += !settled;
    enum kt_balance_event event = settled ? look_back(b) : next_trial(b, sides);
    b->passes = 0;
    b->since = (struct kt_balance_measure){0};
    return event;
}

enum kt_balance_event kt_balance_decide(struct kt_balance *b)
{
    int64_t enough = b->trial == KT_BALANCE_SETTLED ? b->window : 1;
    return b->passes < enough ? KT_BALANCE_NOTHING : decide(b, true);
}

enum kt_balance_event kt_balance_hold(struct kt_balance *b)
{
    if (b->trial == KT_BALANCE_SETTLED)
        return kt_balance_decide(b);
    enum kt_balance_event event = b->passes ? decide(b, false) : next_trial(b, false);
    if (b->trial == 0 || b->trial == KT_BALANCE_SETTLED)
        return event;
    b->trial = KT_BALANCE_SETTLED;
    go_on_with(b, b->scores[KT_BALANCE_BOTH] ? best_mode(b) : KT_BALANCE_BOTH);
    return KT_BALANCE_FOUND;
}

enum { NUMBERS = 7 + KT_BALANCE_MODES };

int kt_balance_write(const struct kt_balance *b, char *text)
{
    int64_t numbers[NUMBERS] = {b->trial, b->mode,       b->host,  b->device,
                                b->scale, b->best_scale, b->window};
    int length = 0;
    for (int i = 0; i < KT_BALANCE_MODES; i++)
        numbers[7 + i] = b->scores[i];
    for (int i = 0; i < NUMBERS; i++)
        length += snprintf(text + length, (size_t)(KT_BALANCE_TEXT - length), "%s%" PRId64,
                           i ? "," : "", numbers[i]);
    return length;
}

/** Whole numbers from 0 to max_number with commas between; bytes read, 0 = there are fewer. */
static int read_numbers(const char *text, int64_t numbers[NUMBERS])
{
    const char *at = text;
    for (int i = 0; i < NUMBERS; i++) {
        if (i && *at++ != ',')
            return 0;
        if (*at < '0' || *at > '9')
            return 0;
        for (numbers[i] = 0; *at >= '0' && *at <= '9'; at++) {
            numbers[i] = 10 * numbers[i] + (*at - '0');
            if (numbers[i] > max_number)
                return 0;
        }
    }
    return (int)(at - text);
}

int kt_balance_read(struct kt_balance *b, const char *text)
{
    int64_t numbers[NUMBERS];
    int length = read_numbers(text, numbers);
    if (!length || numbers[0] > KT_BALANCE_SETTLED || numbers[1] >= KT_BALANCE_MODES ||
        (numbers[0] < KT_BALANCE_SETTLED && numbers[1] != trials[numbers[0]]))
        return 0;
    for (int i = 2; i <= 6; i++)
        if (!numbers[i])
            return 0;
    *b = (struct kt_balance){.trial = (int32_t)numbers[0],
                             .mode = (int32_t)numbers[1],
                             .host = numbers[2],
                             .device = numbers[3],
                             .scale = numbers[4],
                             .best_scale = numbers[5],
                             .window = numbers[6]};
    for (int i = 0; i < KT_BALANCE_MODES; i++)
        b->scores[i] = numbers[7 + i];
    return length;
}
