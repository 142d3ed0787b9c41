/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/finite.h
 * The search for NaN and infinity in weights. */
#ifndef KT_MODEL_FINITE_H
#define KT_MODEL_FINITE_H

#include <kt/types.h>

/** Looks through the tensors that are used, or through norms, biases and routers alone. Errors:
 * NUMERIC with file and tensor, CANCELLED. */
kt_status kt_model_find_not_finite(kt_model *model, int all);

#endif
