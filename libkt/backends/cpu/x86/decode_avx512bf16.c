/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 with BF16. */
#include "backends/cpu/x86/decode_avx512_table.h"

/* The instruction takes subnormal numbers for zero; is_common keeps them away. */
static inline __attribute__((always_inline)) void store_unit(const enum kt_decoding decoding,
                                                             char *to, const __m512 v[2])
{
    if (decoding == KT_DECODE_BF16)
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
    else
        store_float32(decoding == KT_DECODE_ROUNDED, to, v);
}

#include "backends/cpu/decode_template.h"

const kt_decode_fn kt_decoders_avx512bf16[KT_DECODINGS] = DECODERS;
