/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/gguf.h
 * Whole models in GGUF files, presented as Hugging Face checkpoints: architecture descriptors,
 * binding and what stands on them do not know the difference. */
#ifndef KT_MODEL_GGUF_H
#define KT_MODEL_GGUF_H

#include "formats/gguf.h"
#include "model/model.h"

/** Opens the model whose only or first file is `file`: its tensors (kt_gguf_checkpoint), and its
 * configuration from a config.json in the same folder or, without one, from its metadata
 * (kt_gguf_config). Errors: as of kt_gguf_open and kt_config_read; UNSUPPORTED for architectures
 * and forms that are not known. */
kt_status kt_gguf_model_open(kt_context *ctx, const char *file, struct kt_model_config *config,
                             struct kt_checkpoint **checkpoint);

/** The file's architecture, borrowed from its metadata. UNSUPPORTED when libkt cannot read it from
 * a GGUF file. */
kt_status kt_gguf_check_architecture(const struct kt_gguf *gguf, const char **name);

/** What config.json would say of the model, as far as the metadata and the presence of tensors
 * tell; json_decref it.
 * Errors: NOT_FOUND (a key is missing), FORMAT (its value), UNSUPPORTED, OUT_OF_MEMORY. */
kt_status kt_gguf_config(const struct kt_gguf *gguf, json_t **config);

/** Moves files and tensors into a checkpoint, where tensors have the names and shapes of Hugging
 * Face's: "blk.3.attn_q.weight" is "model.layers.3.self_attn.q_proj.weight", and the tensor of all
 * experts of a layer is one tensor an expert. Some are rebuilt in memory (gguf_rebuild.h). Tensors
 * of other names keep them. `gguf` keeps its metadata. Errors: FORMAT (shapes, two tensors of one
 * name), UNSUPPORTED, OUT_OF_MEMORY. */
kt_status kt_gguf_checkpoint(struct kt_gguf *gguf, struct kt_checkpoint **out);

#endif
