/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/kernels.h"

#include <kt/context.h>

#include "config.h"

void kt_kernels_init(struct kt_kernels *kernels, uint32_t isa)
{
    const kt_decode_fn *decoders = kt_decoders_c;
    kernels->decode_pairs = NULL;
    kt_kernels_init_c(kernels);
#if defined(__x86_64__)
    if (isa & KT_ISA_AVX2) {
        kt_kernels_init_avx2(kernels);
        decoders = kt_decoders_avx2;
    }
    if (isa & KT_ISA_AVX512) {
        kt_kernels_init_avx512(kernels);
        decoders = kt_decoders_avx512;
    }
    if (isa & KT_ISA_AVX512_BF16) {
        kt_kernels_init_avx512bf16(kernels);
        decoders = kt_decoders_avx512bf16;
    }
    if (isa & KT_ISA_AVX512_VBMI) {
        kt_kernels_init_avx512vbmi(kernels);
        decoders = kt_decoders_avx512vbmi;
    }
#if defined(KT_HAVE_AMX)
    if (isa & KT_ISA_AMX_BF16)
        kt_kernels_init_amx(kernels);
#endif
#else
    (void)isa;
#endif
    kernels->decode = kernels->f32.decode = kernels->bf16.decode = decoders;
}
