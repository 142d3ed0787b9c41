/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/finite.h
 * The search for NaN and infinity in weights. */
#ifndef KT_MODEL_FINITE_H
#define KT_MODEL_FINITE_H

#include "formats/safetensors.h"

/** NUMERIC when a tensor holds NaN or infinity. Dtypes without them, or unknown, pass. */
kt_status kt_tensor_check_finite(kt_context *ctx, const struct kt_tensor *tensor);

/** The same for scales of F32, BF16 or F16, which must not be negative. */
kt_status kt_tensor_check_scales(kt_context *ctx, const struct kt_tensor *tensor);

/** Looks through the tensors that are used, or through norms, biases and routers alone. Errors:
 * NUMERIC with file and tensor, CANCELLED. */
kt_status kt_model_find_not_finite(kt_model *model, bool all);

#endif
