/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 F, BW, VL, DQ. */
#include "backends/cpu/x86/decode_avx512_table.h"

static inline __attribute__((always_inline)) void store_unit(const enum kt_decoding decoding,
                                                             char *to, const __m512 v[2])
{
    if (decoding != KT_DECODE_BF16) {
        store_float32(decoding == KT_DECODE_ROUNDED, to, v);
        return;
    }
    for (int i = 0; i < 2; i++) {
        __m512i upper = _mm512_srli_epi32(round_up_halves(v[i]), 16);
        _mm256_storeu_si256((__m256i *)(void *)(to + 32 * i), _mm512_cvtepi32_epi16(upper));
    }
}

#include "backends/cpu/decode_template.h"

const kt_decode_fn kt_decoders_avx512[KT_DECODINGS] = DECODERS;
