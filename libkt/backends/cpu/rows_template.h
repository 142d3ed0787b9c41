/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cpu/rows_template.h
 * The row kernels, written once for the compiler to vectorise and included by the file of each
 * instruction set, which is compiled with that set's flags. Sums run in 16 lanes whatever the
 * vector length. Defines `row_kernels`. */
#include "backends/cpu/kernels.h"
#include "weights/dtype.h"

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
enum { LANES = 16 };

#define LOAD_LANES(x) (*(const lanes *)(x))

static inline float add_lanes(const lanes *v)
{
    float sum[LANES];
    memcpy(sum, v, sizeof sum);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            sum[i] += sum[i + width];
    return sum[0];
}

static float row_dot(int64_t n, const float *x, const float *y)
{
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        s0 += LOAD_LANES(x + i) * LOAD_LANES(y + i);
        s1 += LOAD_LANES(x + i + LANES) * LOAD_LANES(y + i + LANES);
        s2 += LOAD_LANES(x + i + 2 * LANES) * LOAD_LANES(y + i + 2 * LANES);
        s3 += LOAD_LANES(x + i + 3 * LANES) * LOAD_LANES(y + i + 3 * LANES);
    }
    for (; i + LANES <= n; i += LANES)
        s0 += LOAD_LANES(x + i) * LOAD_LANES(y + i);
    float tail = 0;
    for (; i < n; i++)
        tail += x[i] * y[i];
    s0 = (s0 + s1) + (s2 + s3);
    return add_lanes(&s0) + tail;
}

static float row_dot3(int64_t n, const float *x, const float *y, const float *z)
{
    lanes s = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        s += LOAD_LANES(x + i) * LOAD_LANES(y + i) * LOAD_LANES(z + i);
    float tail = 0;
    for (; i < n; i++)
        tail += x[i] * y[i] * z[i];
    return add_lanes(&s) + tail;
}

static float row_sum(int64_t n, const float *x)
{
    lanes s = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        s += LOAD_LANES(x + i);
    float tail = 0;
    for (; i < n; i++)
        tail += x[i];
    return add_lanes(&s) + tail;
}

static float row_max(int64_t n, const float *x)
{
    float best[LANES], result;
    int64_t i;
    for (int j = 0; j < LANES; j++)
        best[j] = x[0];
    for (i = 0; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
    result = best[0];
    for (int j = 1; j < LANES; j++)
        result = best[j] > result ? best[j] : result;
    for (; i < n; i++)
        result = x[i] > result ? x[i] : result;
    return result;
}

/* exp by 2^n * e^r, |r| <= ln 2 / 2, e^r as its Taylor polynomial of degree 7 (remainder below
 * 6e-9). The range is clamped to that of normal numbers, so exp(-inf) is about 1e-38. */
static inline float exp_f32(float x)
{
    const float shifter = 0x1.8p23f;
    union {
        float f;
        int32_t i;
    } n, power;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    n.f = x * 0x1.715476p0f + shifter;
    power.i = (int32_t)((uint32_t)n.i << 23) + 0x3f800000;
    float whole = n.f - shifter;
    float r = x - whole * 0x1.62ep-1f;
    r = r - whole * 0x1.0bfbe8p-15f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * power.f;
}

static float row_exp_sum(int64_t n, float scale, float shift, const float *x, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = exp_f32(x[i] * scale - shift);
    return row_sum(n, y);
}

static void row_exp_minus(int64_t n, float scale, const float *x, const float *shift, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = exp_f32(x[i] * scale - shift[i]);
}

static void row_softmax_backward(int64_t n, float scale, const float *p, const float *delta,
                                 float *dp)
{
    for (int64_t i = 0; i < n; i++)
        dp[i] = p[i] * (dp[i] - delta[i]) * scale;
}

static void row_scale_add(int64_t n, float alpha, const float *x, bool accumulate, float *y)
{
    if (accumulate)
        for (int64_t i = 0; i < n; i++)
            y[i] += alpha * x[i];
    else
        for (int64_t i = 0; i < n; i++)
            y[i] = alpha * x[i];
}

static void row_scale_mul(int64_t n, float scale, const float *x, const float *weight, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

static void row_norm_backward(int64_t n, float a, float b, const float *weight, const float *x,
                              const float *dy, bool accumulate, float *dx)
{
    if (accumulate)
        for (int64_t i = 0; i < n; i++)
            dx[i] += a * dy[i] * weight[i] - b * x[i];
    else
        for (int64_t i = 0; i < n; i++)
            dx[i] = a * dy[i] * weight[i] - b * x[i];
}

static inline float sigmoid_f32(float x)
{
    return 1.0f / (1.0f + exp_f32(-x));
}

static void row_sigmoid(int64_t n, const float *x, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = sigmoid_f32(x[i]);
}

static void row_silu_mul(int64_t n, const float *gate, const float *up, float *h)
{
    for (int64_t i = 0; i < n; i++)
        h[i] = gate[i] * sigmoid_f32(gate[i]) * up[i];
}

static void row_silu_mul_backward(int64_t n, float scale, const float *gate, const float *up,
                                  const float *dh, float *dgate, float *dup)
{
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i], u = up[i], d = dh[i] * scale;
        float s = sigmoid_f32(g);
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
        dup[i] = d * g * s;
    }
}

static inline float widen_f16(uint16_t h)
{
    union {
        uint32_t i;
        float f;
    } out = {.i = (uint32_t)(h & 0x7fffu) << 13};
    out.f *= 0x1p112f; /* the difference of the exponents' biases */
    out.i |= (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    out.i |= (uint32_t)(h & 0x8000u) << 16;
    return out.f;
}

static void row_widen(int64_t n, kt_dtype dtype, const void *x, float *y)
{
    const uint16_t *half = x;
    if (dtype == KT_DTYPE_F32)
        memcpy(y, x, (size_t)n * sizeof *y);
    else if (dtype == KT_DTYPE_BF16)
        for (int64_t i = 0; i < n; i++)
            y[i] = kt_bf16_to_f32(half[i]);
    else
        for (int64_t i = 0; i < n; i++)
            y[i] = widen_f16(half[i]);
}

static void row_to_bf16(int64_t n, const float *x, uint16_t *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = kt_f32_to_bf16(x[i]);
}

static const struct kt_row_kernels row_kernels = {
    .dot = row_dot,
    .sum = row_sum,
    .max = row_max,
    .exp_sum = row_exp_sum,
    .exp_minus = row_exp_minus,
    .softmax_backward = row_softmax_backward,
    .scale_add = row_scale_add,
    .scale_mul = row_scale_mul,
    .dot3 = row_dot3,
    .norm_backward = row_norm_backward,
    .sigmoid = row_sigmoid,
    .silu_mul = row_silu_mul,
    .silu_mul_backward = row_silu_mul_backward,
    .widen = row_widen,
    .to_bf16 = row_to_bf16,
};
