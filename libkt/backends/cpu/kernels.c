/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cpu/kernels.h"

void kt_kernels_init(struct kt_kernels *kernels, uint32_t isa)
{
    (void)isa;
    kt_kernels_init_c(kernels);
}
