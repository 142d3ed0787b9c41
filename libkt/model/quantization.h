/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/quantization.h
 * Quantised checkpoints: config.json's quantization_config, and the tensors that hold a weight and
 * its scales. docs/checkpoints.md describes the layouts.
 *
 * The dtype of a tensor says how it is stored, whatever others are; quantization_config says what
 * the dtype does not: the sizes of the blocks that share a scale. */
#ifndef KT_MODEL_QUANTIZATION_H
#define KT_MODEL_QUANTIZATION_H

#include "formats/json.h"
#include "formats/safetensors.h"
#include "model/model.h"

/** Reads quantization_config, which may be absent. Errors: UNSUPPORTED (a method or an element type
 * that libkt lacks), NOT_FOUND, FORMAT, each naming the key. */
kt_status kt_quantization_read(const struct kt_json *config, struct kt_quantization *quantization);

/** What the scales of weight X.weight are called behind that name ("_scale_inv", "_scale"); NULL
 * for dtypes without a tensor of scales. */
const char *kt_scale_suffix(kt_dtype dtype);

/** The dtype of the weight that a tensor holds: its own, but U8 holds I4. */
kt_dtype kt_tensor_weight_dtype(const struct kt_tensor *tensor);

/** A matrix of the checkpoint as a weight that points into the mapped file. Checks its dtype,
 * alignment and size, and those of its scales, which *scales gets (NULL = none). Scales that are
 * not float32 leave weight->scale NULL: the caller widens them. Errors: UNSUPPORTED (dtype),
 * NOT_FOUND (scales), MISMATCH (no matrix; shape of the scales), FORMAT (alignment, size),
 * OUT_OF_MEMORY. */
kt_status kt_tensor_weight(kt_context *ctx, const struct kt_checkpoint *checkpoint,
                           const struct kt_quantization *quantization,
                           const struct kt_tensor *tensor, struct kt_weight *weight,
                           const struct kt_tensor **scales);

/** FORMAT unless elements lie at multiples of their size. */
kt_status kt_tensor_check_aligned(kt_context *ctx, const struct kt_tensor *tensor);

#endif
