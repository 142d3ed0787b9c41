/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/gguf_kv_b.h
 * DeepSeek's kv_b_proj in files that hold it in two parts, as attention in the latent space uses
 * them: attn_k_b [heads, kv_lora_rank, qk_nope_head_dim], transposed, and attn_v_b [heads,
 * v_head_dim, kv_lora_rank]. */
#ifndef KT_MODEL_GGUF_KV_B_H
#define KT_MODEL_GGUF_KV_B_H

#include "formats/gguf.h"

/** Joins both into float32 [heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank], in a new buffer
 * that `out`->data points to (kt_buffer_free). Fills dtype, shape and bytes of `out`.
 * Errors: MISMATCH (shapes), UNSUPPORTED (dtypes), OUT_OF_MEMORY. */
kt_status kt_gguf_join_kv_b(kt_context *ctx, const struct kt_tensor *k, const struct kt_tensor *v,
                            struct kt_tensor *out);

#endif
