/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/rotary.h
 * Rows of the rotary tables, on the host. Frequencies that do not depend on the length of a
 * sequence have a row for each position, computed once. With dynamic scaling each token of a pass
 * has a row of its own. */
#ifndef KT_EXECUTOR_ROTARY_H
#define KT_EXECUTOR_ROTARY_H

#include "model/model.h"

/** Rows that were computed before; zero at first. */
struct kt_rotary {
    float *cos, *sin; /**< [rows, rope dim / 2] */
    int64_t rows;
};

void kt_rotary_free(struct kt_rotary *rotary);

/** Whether frequencies depend on the length of a sequence. */
bool kt_rotary_by_length(const kt_model *model);

/** Copies the rows of positions [first, first + count) in a sequence of `length` tokens to cos and
 * sin. Errors: OUT_OF_MEMORY. */
kt_status kt_rotary_rows(struct kt_rotary *rotary, const kt_model *model, int64_t length,
                         int64_t first, int64_t count, float *cos, float *sin);

#endif
