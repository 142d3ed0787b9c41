/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary position embedding (arXiv 2104.09864). */
#include "backends/cpu/cpu.h"

enum { ROWS_A_TASK = 16 };

static void rotate(const struct kt_rope_args *r, const float *cos, const float *sin, float *x)
{
    int32_t half = r->rope_dim / 2;
    int32_t step = r->interleaved ? 2 : 1, other = r->interleaved ? 1 : half;
    float sign = r->inverse ? -1.0f : 1.0f;
    for (int32_t i = 0; i < half; i++) {
        float a = x[i * step], b = x[i * step + other], s = sign * sin[i];
        x[i * step] = a * cos[i] - b * s;
        x[i * step + other] = a * s + b * cos[i];
    }
}

static void rotate_tokens(void *arg, int64_t begin, int64_t end, int32_t thread)
{
    const struct kt_rope_args *r = arg;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        int64_t at = (int64_t)r->rows[t] * (r->rope_dim / 2);
        float *x = (float *)r->x.data + t * r->x.ld;
        for (int32_t h = 0; h < r->num_heads; h++)
            rotate(r, r->cos + at, r->sin + at, x + h * r->head_stride);
    }
}

void kt_cpu_rope(struct kt_device *dev, const void *args, void *scratch)
{
    struct kt_rope_args a = *(const struct kt_rope_args *)args;
    (void)scratch;
    kt_parallel_for(kt_cpu(dev)->pool, a.tokens, ROWS_A_TASK, rotate_tokens, &a);
}
