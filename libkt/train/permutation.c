/* SPDX-License-Identifier: Apache-2.0 */
/* MT19937 (Matsumoto and Nishimura, 1998) and a Fisher-Yates shuffle in torch's order. */
#include <kt/optimizer.h>

#include "core/context.h"

enum { WORDS = 624, MIDDLE = 397 };

struct twister {
    uint32_t state[WORDS];
    int next;
};

static void seed_twister(struct twister *t, uint32_t seed)
{
    t->state[0] = seed;
    for (uint32_t i = 1; i < WORDS; i++)
        t->state[i] = 1812433253u * (t->state[i - 1] ^ (t->state[i - 1] >> 30)) + i;
    t->next = WORDS;
}

static void refill(struct twister *t)
{
    for (int i = 0; i < WORDS; i++) {
        uint32_t joined = (t->state[i] & 0x80000000u) | (t->state[(i + 1) % WORDS] & 0x7fffffffu);
        t->state[i] =
            t->state[(i + MIDDLE) % WORDS] ^ (joined >> 1) ^ (joined & 1 ? 0x9908b0dfu : 0);
    }
    t->next = 0;
}

static uint32_t draw(struct twister *t)
{
    if (t->next == WORDS)
        refill(t);
    uint32_t y = t->state[t->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

kt_status kt_random_permutation(kt_context *ctx, uint64_t seed, size_t n, int64_t *order)
{
    struct twister twister;
    KT_ENTER_CONTEXT(ctx);
    /* torch changes to 64-bit draws from here on */
    if (n >= UINT32_MAX / 20)
        return kt_fail(ctx, KT_ERROR_UNSUPPORTED, "cannot shuffle %zu examples; the most is %u", n,
                       UINT32_MAX / 20 - 1);
    if (n)
        KT_TRY(kt_check_given(ctx, order, "order"));
    seed_twister(&twister, (uint32_t)seed);
    for (size_t i = 0; i < n; i++)
        order[i] = (int64_t)i;
    for (size_t i = 0; i + 1 < n; i++) {
        size_t j = i + draw(&twister) % (n - i);
        int64_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    return KT_OK;
}
