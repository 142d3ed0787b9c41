/* SPDX-License-Identifier: Apache-2.0 */
/* numpy's default generator, SeedSequence and PCG64 (O'Neill, HMC-CS-2014-0905: XSL RR 128/64),
 * under a Fisher-Yates shuffle. */
#include "core/random.h"

#include <stdbool.h>

typedef unsigned __int128 u128;

struct pcg64 {
    u128 state, increment;
    uint32_t high; /* the second half of the last 64-bit word */
    bool has_high;
};

static uint32_t hash_word(uint32_t value, uint32_t *constant, uint32_t multiplier)
{
    value ^= *constant;
    *constant *= multiplier;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mix(uint32_t x, uint32_t y)
{
    uint32_t r = 0xca01f9ddu * x - 0x4973f715u * y;
    return r ^ r >> 16;
}

static void seed_sequence(uint64_t seed, uint64_t out[4])
{
    uint32_t pool[4], constant = 0x43b0d7e5u;
    const uint32_t entropy[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), 0, 0};
    for (int i = 0; i < 4; i++)
        pool[i] = hash_word(entropy[i], &constant, 0x931e8875u);
    for (int from = 0; from < 4; from++)
        for (int to = 0; to < 4; to++)
            if (from != to)
                pool[to] = mix(pool[to], hash_word(pool[from], &constant, 0x931e8875u));
    constant = 0x8b51f9ddu;
    for (int i = 0; i < 4; i++) {
        uint32_t low = hash_word(pool[2 * i % 4], &constant, 0x58f38dedu);
        uint32_t high = hash_word(pool[(2 * i + 1) % 4], &constant, 0x58f38dedu);
        out[i] = (uint64_t)high << 32 | low;
    }
}

static void step(struct pcg64 *g)
{
    const u128 multiplier = (u128)0x2360ed051fc65da4u << 64 | 0x4385df649fccf645u;
    g->state = g->state * multiplier + g->increment;
}

static uint32_t next32(struct pcg64 *g)
{
    if (g->has_high) {
        g->has_high = false;
        return g->high;
    }
    step(g);
    uint64_t word = (uint64_t)(g->state >> 64) ^ (uint64_t)g->state;
    unsigned rotation = (unsigned)(g->state >> 122);
    word = word >> rotation | word << (-rotation & 63);
    g->high = (uint32_t)(word >> 32);
    g->has_high = true;
    return (uint32_t)word;
}

/* Uniform in [0, last], by rejection under the smallest mask of ones. */
static uint32_t bounded(struct pcg64 *g, uint32_t last)
{
    uint32_t mask = last, value;
    for (int shift = 1; shift < 32; shift *= 2)
        mask |= mask >> shift;
    while ((value = next32(g) & mask) > last) {
    }
    return value;
}

void kt_numpy_permutation(uint64_t seed, uint64_t count, uint64_t *out)
{
    uint64_t words[4];
    seed_sequence(seed, words);
    struct pcg64 g = {.increment = ((u128)words[2] << 64 | words[3]) << 1 | 1};
    step(&g);
    g.state += (u128)words[0] << 64 | words[1];
    step(&g);
    for (uint64_t i = 0; i < count; i++)
        out[i] = i;
    for (uint64_t i = count; i-- > 1;) {
        uint32_t j = bounded(&g, (uint32_t)i);
        uint64_t swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
}
