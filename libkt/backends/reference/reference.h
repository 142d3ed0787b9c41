/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/reference/reference.h
 * The judge of the other expert backends: plain C, float32 whatever the call's `compute` says, one
 * expert after another, every matrix product a loop over dot products. */
#ifndef KT_BACKENDS_REFERENCE_REFERENCE_H
#define KT_BACKENDS_REFERENCE_REFERENCE_H

#include "backend/experts.h"

kt_status kt_reference_open(kt_context *ctx, struct kt_experts **out);

#endif
