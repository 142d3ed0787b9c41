/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/budget.h
 * What a file or a text may cost that somebody else wrote: memory and work in proportion to its
 * size, so that a few bytes cannot stand for gigabytes or hours. Charged before the memory is
 * taken; errors name the file and what grew. */
#ifndef KT_CORE_BUDGET_H
#define KT_CORE_BUDGET_H

#include <kt/types.h>

/** At `size` bytes of input. Ordinary files take a tenth of it. */
#define KT_BUDGET_BYTES(size) (((uint64_t)64 << 20) + 24 * (size))
#define KT_BUDGET_STEPS(size) (((uint64_t)256 << 20) + 256 * (size))

struct kt_budget {
    kt_context *ctx;
    const char *name;      /**< the file, for errors; borrowed */
    uint64_t size;         /**< of the input */
    uint64_t bytes, steps; /**< that are left */
    bool limited;          /**< memory_limit leaves less than the size would allow */
};

/** For an input of `size` bytes, which is the file `name` or goes through it. With a memory limit
 * at most what is not in use. */
void kt_budget_start(struct kt_budget *budget, kt_context *ctx, const char *name, uint64_t size);

/** FORMAT, or OUT_OF_MEMORY when the memory limit is why, if there are not so many bytes left.
 * `what` will take them: "the normalizer". */
kt_status kt_budget_bytes(struct kt_budget *budget, uint64_t bytes, const char *what);

/** Steps of about a nanosecond. UNSUPPORTED when there are not so many left. */
kt_status kt_budget_steps(struct kt_budget *budget, uint64_t steps, const char *what);

#endif
