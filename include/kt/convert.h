/* SPDX-License-Identifier: Apache-2.0 */
/** \file convert.h
 * Checkpoints in another format of weights: FP8 to BF16, BF16 to FP8, INT8 or INT4, and so on. The
 * layouts are described in docs/checkpoints.md. */
#ifndef KT_CONVERT_H
#define KT_CONVERT_H

#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_convert_options {
    size_t size;          /**< sizeof(kt_convert_options), set by the init function */
    int32_t to;           /**< a kt_dtype: BF16 (default), F32, F8_E4M3, I8 or I4 */
    int32_t experts_only; /**< 1 = the matrices of routed experts alone; 0 (default) = see below */
    uint64_t reserved[8];
} kt_convert_options;

/** Fills `options` with the defaults above. */
KT_API void kt_convert_options_init(kt_convert_options *options, size_t size);

/** Writes the safetensors checkpoint in the folder `source` into the folder `target`, which is made
 * unless it exists: the same shards, index, configuration and tokenizer.
 *
 * Converted are the matrices that DeepSeek-V3's released checkpoint holds in FP8: projections of
 * attention, dense MLPs, shared and routed experts, also in layers that are not used. To BF16 and
 * F32 every quantised matrix is converted. Everything else is copied bit for bit, and so is a
 * matrix that has the format already.
 *
 * FP8: a scale for 128 x 128 elements (or as the source has it), the largest magnitude over 448.
 * INT8: a scale for each row, the largest magnitude over 127. INT4: a scale for 128 elements of a
 * row (or as the source has it), the largest magnitude over 7. Everything is rounded to nearest,
 * ties to even. The result does not depend on the number of threads.
 *
 * Files are written one after another, each beside its name and renamed when it is whole;
 * config.json comes last. When a conversion was interrupted, the same call goes on: a file that is
 * whole is kept. Memory: 9 MiB and 64 KiB for each thread, the names and shapes of a shard's
 * tensors, and what kt_model_load takes; the size of tensors does not matter. The progress callback
 * gets bytes of the source; the cancel callback is asked every few MiB.
 *
 * Errors: those of kt_model_load for `source`; INVALID_ARGUMENT (options, one folder for both, a
 * path of `source` that is not UTF-8, nothing to convert), UNSUPPORTED (a matrix that the format
 * cannot hold, a GGUF file), NUMERIC (NaN, infinity, or a number beyond the format), STATE
 * (`target` holds something else, or another conversion writes into it), IO (a file cannot be
 * written, too little space: found before anything is written), CANCELLED, OUT_OF_MEMORY.
 * Afterwards `target` holds whole files alone. */
KT_API kt_status kt_convert(kt_context *ctx, const char *source, const char *target,
                            const kt_convert_options *options);

KT_END_DECLS
#endif
