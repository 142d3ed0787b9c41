/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/gguf_header.h
 * The header of one GGUF file, between gguf.c (files) and gguf_header.c (contents). */
#ifndef KT_FORMATS_GGUF_HEADER_H
#define KT_FORMATS_GGUF_HEADER_H

#include "formats/json.h"
#include "formats/safetensors.h"

/** Checks the file `bytes` [size], named `path` in errors. *tensors: as the file lists them, with
 * allocated names (kt_tensors_free); `path` is borrowed. *metadata: see struct kt_gguf; json_decref
 * it. Both are NULL on errors. Errors: FORMAT, UNSUPPORTED, OUT_OF_MEMORY. */
kt_status kt_gguf_parse(kt_context *ctx, const char *path, const void *bytes, uint64_t size,
                        struct kt_tensor **tensors, size_t *num, json_t **metadata);

#endif
