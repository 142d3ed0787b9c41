/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/kernels.h"

#include <kt/context.h>

#include "config.h"

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
#if defined(KT_HAVE_AMX)
    if (isa & KT_ISA_AMX_BF16)
        kt_kernels_init_amx(kernels);
#endif
#else
    (void)isa;
#endif
}
