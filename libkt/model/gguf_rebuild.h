/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/gguf_rebuild.h
 * Tensors that GGUF files hold in another form than Hugging Face's checkpoints, rebuilt in memory.
 * Each function fills a new buffer (kt_buffer_free) that `out`->data points to. */
#ifndef KT_MODEL_GGUF_REBUILD_H
#define KT_MODEL_GGUF_REBUILD_H

#include "formats/gguf.h"

/** DeepSeek's kv_b_proj in two parts, as attention in the latent space uses them: attn_k_b [heads,
 * kv_lora_rank, qk_nope_head_dim], transposed, and attn_v_b [heads, v_head_dim, kv_lora_rank]. They
 * become float32 [heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]. Fills dtype, shape, bytes
 * and data of `out`. Errors: MISMATCH (shapes), UNSUPPORTED (dtypes), OUT_OF_MEMORY. */
kt_status kt_gguf_join_kv_b(kt_context *ctx, const struct kt_tensor *k, const struct kt_tensor *v,
                            struct kt_tensor *out);

/** Queries or keys of llama.cpp's architecture "llama", or their bias: the two halves of each
 * head's rows, whose features are rotated in pairs, are interleaved there. They become the halves
 * one after the other, of the same dtype. Fills data of `out`. Errors: MISMATCH (rows that are no
 * heads), OUT_OF_MEMORY. */
kt_status kt_gguf_order_rows(kt_context *ctx, const struct kt_tensor *t, int64_t heads,
                             struct kt_tensor *out);

#endif
