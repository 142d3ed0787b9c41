/* SPDX-License-Identifier: Apache-2.0 */
#include "executor/walk.h"

enum { NONE = -1 };

int32_t kt_walk_distance(const struct kt_walk_state *s, int32_t unit)
{
    switch (s->walk) {
    case KT_WALK_UP_DOWN:
        return unit >= s->at ? unit - s->at : s->num - 1 - s->at + s->num - 1 - unit;
    case KT_WALK_DOWN_UP:
        return unit <= s->at ? s->at - unit : s->at + unit;
    default:
        return unit >= s->at ? unit - s->at : s->num - s->at + unit;
    }
}

static uint64_t held_bytes(const struct kt_walk_state *s)
{
    uint64_t bytes = 0;
    for (int32_t u = 0; u < s->num; u++)
        bytes += s->held[u] ? s->bytes[u] : 0;
    return bytes;
}

static int32_t first_missing(const struct kt_walk_state *s)
{
    int32_t first = NONE;
    for (int32_t u = 0; u < s->num; u++)
        if (s->bytes[u] && !s->held[u] &&
            (first == NONE || kt_walk_distance(s, u) < kt_walk_distance(s, first)))
            first = u;
    return first;
}

/** The unit that is used last, if it is held and used after so many others. */
static int32_t last_held(const struct kt_walk_state *s, int32_t after)
{
    int32_t last = NONE;
    for (int32_t u = 0; u < s->num; u++) {
        if (!s->bytes[u] || !s->held[u] || kt_walk_distance(s, u) <= after)
            continue;
        after = kt_walk_distance(s, u);
        last = u;
    }
    return last;
}

struct kt_walk_move kt_walk_next(const struct kt_walk_state *s)
{
    const struct kt_walk_move wait = {KT_WALK_WAIT, NONE};
    uint64_t held = held_bytes(s);
    int32_t over = held > s->budget ? last_held(s, 0) : NONE, next = first_missing(s);
    if (over != NONE)
        return (struct kt_walk_move){KT_WALK_DROP, over};
    if (next == NONE)
        return wait;
    if (held <= s->budget && s->bytes[next] <= s->budget - held)
        return (struct kt_walk_move){KT_WALK_READ, next};
    int32_t distance = kt_walk_distance(s, next);
    bool may = s->walk != KT_WALK_UP_UP || distance <= 1;
    int32_t victim = may ? last_held(s, distance) : NONE;
    if (victim != NONE)
        return (struct kt_walk_move){KT_WALK_DROP, victim};
    return next == s->at ? (struct kt_walk_move){KT_WALK_READ, next} : wait;
}
