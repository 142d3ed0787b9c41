/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/safetensors_header.h
 * The header of one safetensors file, between safetensors.c (files) and safetensors_header.c
 * (contents). */
#ifndef KT_FORMATS_SAFETENSORS_HEADER_H
#define KT_FORMATS_SAFETENSORS_HEADER_H

#include "formats/safetensors.h"

/** Checks the file `bytes` [size], named `path` in errors, and gives its tensors in the order of
 * their data. Names and dtype names are allocated (kt_tensors_free), `path` is borrowed.
 * Errors: FORMAT, OUT_OF_MEMORY. */
kt_status kt_safetensors_parse(kt_context *ctx, const char *path, const void *bytes, uint64_t size,
                               struct kt_tensor **tensors, size_t *num);
void kt_tensors_free(struct kt_tensor *tensors, size_t num);

#endif
