/* SPDX-License-Identifier: Apache-2.0 */
/* Decoders in plain C, for every format: what those of instruction sets are tested against, and
 * what they leave to. */
#include "backends/cpu/kernels.h"
#include "weights/dtype.h"
#include "core/memory.h"

enum { PART = 256 }; /* elements: whole blocks of every format */

static void decode_f32(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                       int64_t cols, int64_t ahead, void *to, int64_t ld)
{
    (void)ahead;
    for (int64_t r = 0; r < rows; r++)
        kt_weight_decode(w, row + r, col, cols, (float *)to + r * ld);
}

static void decode_rounded(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                           int64_t cols, int64_t ahead, void *to, int64_t ld)
{
    (void)ahead;
    for (int64_t r = 0; r < rows; r++) {
        float *out = (float *)to + r * ld;
        kt_weight_decode(w, row + r, col, cols, out);
        for (int64_t i = 0; i < cols; i++)
            out[i] = kt_bf16_to_f32(kt_f32_to_bf16(out[i]));
    }
}

static void decode_bf16(const struct kt_weight *w, int64_t row, int64_t col, int64_t rows,
                        int64_t cols, int64_t ahead, void *to, int64_t ld)
{
    (void)ahead;
    float part[PART];
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *out = (uint16_t *)to + r * ld;
        for (int64_t c = 0; c < cols; c += PART) {
            int64_t n = kt_min_i64(PART, cols - c);
            kt_weight_decode(w, row + r, col + c, n, part);
            for (int64_t i = 0; i < n; i++)
                out[c + i] = kt_f32_to_bf16(part[i]);
        }
    }
}

const kt_decode_fn kt_decoders_c[KT_DECODINGS] = {
    [KT_DECODE_F32] = decode_f32,
    [KT_DECODE_ROUNDED] = decode_rounded,
    [KT_DECODE_BF16] = decode_bf16,
};
