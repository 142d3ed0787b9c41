/* SPDX-License-Identifier: Apache-2.0 */
#include "core/random.h"

void kt_philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

void kt_dropout_row(float p, uint64_t key, int64_t token, int64_t first, int64_t n, const float *x,
                    int accumulate, float *y)
{
    float keep = p < 1.0f ? 1.0f / (1.0f - p) : 0.0f;
    uint32_t words[4];
    for (int64_t i = 0; i < n; i++) {
        uint64_t e = (uint64_t)(first + i);
        if (i == 0 || e % 4 == 0)
            kt_philox(key, (uint64_t)token, e / 4, words);
        float value = kt_uniform_f32(words[e % 4]) < p ? 0.0f : x[i] * keep;
        y[i] = accumulate ? y[i] + value : value;
    }
}
