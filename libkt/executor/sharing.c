/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/sharing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/context.h"
#include "executor/executor.h"

enum { CLASSES = 32, DIRECTIONS = 2 };
static const char directions[DIRECTIONS] = {'f', 'b'};
static const char version[] = "kt-sharing-1";

/** The latest pass of a direction. */
struct measured {
    int32_t of; /**< class; -1 = there is none */
    double began;
    struct kt_balance_measure measure;
};

struct kt_sharing {
    kt_context *ctx;
    struct kt_balance balances[DIRECTIONS][CLASSES]; /**< by the tokens' highest bit */
    struct measured latest[DIRECTIONS];
    const struct kt_pass *running; /**< the pass that is measured, or NULL */
    bool backward;                 /**< its direction */
    bool held; /**< a record of something was taken or given: nothing is decided any more */
    char text[sizeof version + DIRECTIONS * CLASSES * (KT_BALANCE_TEXT + 8)];
};

static void forget(struct kt_sharing *s)
{
    for (int d = 0; d < DIRECTIONS; d++) {
        s->latest[d].of = -1;
        for (int c = 0; c < CLASSES; c++)
            kt_balance_init(&s->balances[d][c]);
    }
    s->running = NULL;
}

kt_status kt_sharing_create(kt_context *ctx, struct kt_sharing **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return kt_fail_memory(ctx, sizeof **out, "an executor");
    (*out)->ctx = ctx;
    forget(*out);
    return KT_OK;
}

void kt_sharing_free(struct kt_sharing *s)
{
    free(s);
}

static int32_t class_of(int64_t tokens)
{
    int32_t c = 0;
    while (c + 1 < CLASSES && tokens >> (c + 1))
        c++;
    return c;
}

/** The class that has settled and is nearest, fewer tokens first; NULL = none. */
static const struct kt_balance *nearest(const struct kt_balance *balances, int32_t to)
{
    for (int32_t distance = 1; distance < CLASSES; distance++)
        for (int32_t c = to - distance; c <= to + distance; c += 2 * distance)
            if (c >= 0 && c < CLASSES && balances[c].trial == KT_BALANCE_SETTLED)
                return &balances[c];
    return NULL;
}

/** One that was never tried begins with what its neighbour knows of rates. */
static struct kt_balance *balance_of(struct kt_sharing *s, int32_t direction, int32_t class)
{
    struct kt_balance *b = &s->balances[direction][class];
    const struct kt_balance *other = b->trial ? NULL : nearest(s->balances[direction], class);
    if (other) {
        b->host = other->host;
        b->device = other->device;
        b->scale = b->best_scale = other->best_scale;
    }
    return b;
}

const struct kt_balance *kt_sharing_balance(const struct kt_pass *pass, bool backward)
{
    return balance_of(pass->executor->sharing, backward, class_of(pass->tokens));
}

void kt_sharing_count(const struct kt_pass *pass, double host_all, double device_all)
{
    struct kt_balance_measure *measure = kt_sharing_measure(pass);
    if (!measure)
        return;
    measure->host_all += host_all;
    measure->device_all += device_all;
}

struct kt_balance_measure *kt_sharing_measure(const struct kt_pass *pass)
{
    struct kt_sharing *s = pass->executor->sharing;
    return s->running == pass ? &s->latest[s->backward].measure : NULL;
}

bool kt_sharing_looks(const struct kt_pass *pass, bool backward)
{
    const struct kt_balance *b = kt_sharing_balance(pass, backward);
    return kt_sharing_measure(pass) && b->trial < KT_BALANCE_SETTLED && b->mode != KT_BALANCE_HOST;
}

void kt_sharing_begin(const struct kt_pass *pass, bool backward)
{
    struct kt_sharing *s = pass->executor->sharing;
    if (kt_pass_measures(pass))
        return;
    if (!backward) /* a backward that ends is of this forward */
        s->latest[true].of = -1;
    s->latest[backward] = (struct measured){.of = -1, .began = kt_clock()};
    s->running = pass;
    s->backward = backward;
}

/** "; 1.31 times as long alone" of the other modes that were tried. */
static void compare(const struct kt_balance *b, const char *const modes[KT_BALANCE_MODES],
                    char *text, size_t size)
{
    int length = 0;
    *text = 0;
    for (int i = 0; i < KT_BALANCE_MODES; i++)
        if (i != b->mode && b->scores[i] && b->scores[b->mode])
            length += snprintf(text + length, size - (size_t)length, "; %s %.2f times as long",
                               modes[i], (double)b->scores[i] / (double)b->scores[b->mode]);
}

/** One that gives way has cost time. */
static void tell(const struct kt_sharing *s, int direction, int32_t class,
                 enum kt_balance_event event)
{
    static const char *const modes[KT_BALANCE_MODES] = {"device and host together",
                                                        "the device alone", "the host alone"};
    const struct kt_balance *b = &s->balances[direction][class];
    char others[160];
    if (event == KT_BALANCE_NOTHING)
        return;
    compare(b, modes, others, sizeof others);
    kt_log(s->ctx, event == KT_BALANCE_FOUND ? KT_LOG_INFO : KT_LOG_WARNING,
           "routed experts, %s over %lld to %lld tokens: from here on %s%s%s (host seconds count "
           "%.2f times as told)",
           direction ? "backward" : "forward", 1LL << class, (2LL << class) - 1, modes[b->mode],
           event == KT_BALANCE_SWITCHED ? ", as steps have become slower" : "", others,
           (double)b->scale / 1000);
}

/** What a pass that looked for a balance has found. */
static void tell_trial(const struct kt_sharing *s, int direction, const struct kt_balance *b,
                       const struct kt_balance_measure *m)
{
    kt_log(s->ctx, KT_LOG_DEBUG,
           "routed experts, %s, trial %d: %.4f s; host %.4f s for %.4f of %.4f told, device %.4f s "
           "for %.4f of %.4f told, waited for %.4f s of that",
           direction ? "backward" : "forward", b->trial, m->seconds, m->host_seconds, m->host,
           m->host_all, m->device_seconds, m->device, m->device_all, m->waited);
}

/** What the latest forward and backward took; then they may decide. */
static void count(struct kt_sharing *s)
{
    for (int d = 0; d < DIRECTIONS; d++) {
        struct measured *m = &s->latest[d];
        if (m->of < 0 || m->measure.device_all <= 0)
            continue;
        struct kt_balance *b = balance_of(s, d, m->of);
        kt_balance_count(b, &m->measure);
        if (b->trial < KT_BALANCE_SETTLED)
            tell_trial(s, d, b, &m->measure);
        if (!s->held)
            tell(s, d, m->of, kt_balance_decide(b));
        m->of = -1;
    }
}

void kt_sharing_end(const struct kt_pass *pass, bool backward)
{
    struct kt_sharing *s = pass->executor->sharing;
    struct measured *m = &s->latest[backward];
    if (kt_pass_measures(pass))
        return;
    m->measure.seconds = kt_clock() - m->began;
    m->of = class_of(pass->tokens);
    s->running = NULL;
    if (backward)
        count(s);
}

kt_status kt_executor_get_sharing(kt_executor *ex, const char **record)
{
    KT_ENTER_OUT(ex, "executor", record);
    struct kt_sharing *s = ex->sharing;
    char *end = stpcpy(s->text, version);
    bool decides = !s->held;
    for (int d = 0; d < DIRECTIONS; d++)
        for (int32_t c = 0; c < CLASSES; c++) {
            struct kt_balance *b = &s->balances[d][c];
            if (decides)
                tell(s, d, c, kt_balance_hold(b));
            if (!b->trial)
                continue;
            s->held = true;
            end += sprintf(end, " %c%d:", directions[d], c);
            end += kt_balance_write(b, end);
        }
    *record = s->text;
    return KT_OK;
}

/** One class, behind a space; bytes read, 0 where it is none. */
static int read_class(struct kt_balance balances[DIRECTIONS][CLASSES], const char *text)
{
    char letter;
    int c, length = 0;
    if (sscanf(text, " %c%2d:%n", &letter, &c, &length) != 2 || !length || c < 0 || c >= CLASSES)
        return 0;
    if (letter != directions[0] && letter != directions[1])
        return 0;
    int read = kt_balance_read(&balances[letter == directions[1]][c], text + length);
    return read ? length + read : 0;
}

kt_status kt_executor_set_sharing(kt_executor *ex, const char *record)
{
    KT_ENTER(ex, "executor");
    KT_TRY(kt_check_given(ex->ctx, record, "record"));
    struct kt_sharing *fresh;
    size_t head = strlen(version);
    KT_TRY(kt_sharing_create(ex->ctx, &fresh));
    bool good = strncmp(record, version, head) == 0;
    for (const char *at = record + head; good && *at;) {
        int length = *at == ' ' ? read_class(fresh->balances, at) : 0;
        good = length > 0;
        at += length;
    }
    fresh->held = good && record[head];
    if (good)
        memcpy(ex->sharing, fresh, sizeof *fresh);
    kt_sharing_free(fresh);
    return good ? KT_OK
                : kt_fail(ex->ctx, KT_ERROR_INVALID_ARGUMENT,
                          "this is no record of shared experts that kt_executor_get_sharing gave");
}
