/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/kernels.h"

#include <kt/context.h>

void kt_kernels_init(struct kt_kernels *kernels, uint32_t isa)
{
    kt_kernels_init_c(kernels);
#if defined(__x86_64__)
    if (isa & KT_ISA_AVX2)
        kt_kernels_init_avx2(kernels);
    if (isa & KT_ISA_AVX512)
        kt_kernels_init_avx512(kernels);
    if (isa & KT_ISA_AVX512_BF16)
        kt_kernels_init_avx512bf16(kernels);
#else
    (void)isa;
#endif
}
