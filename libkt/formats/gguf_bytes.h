/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/gguf_bytes.h
 * Reading a GGUF header from front to back, every length checked before use. */
#ifndef KT_FORMATS_GGUF_BYTES_H
#define KT_FORMATS_GGUF_BYTES_H

#include <jansson.h>
#include <kt/types.h>

#include "core/budget.h"

struct kt_gguf_bytes {
    kt_context *ctx;
    const char *path;
    const uint8_t *bytes;
    uint64_t size, at;
    struct kt_budget budget; /**< of the metadata as a tree */
};

/** The next `count` bytes. FORMAT when the file has fewer; `what` names them in the sentence. */
kt_status kt_gguf_take(struct kt_gguf_bytes *b, uint64_t count, const char *what,
                       const uint8_t **out);
/** A little-endian number of 1, 2, 4 or 8 bytes. */
kt_status kt_gguf_number(struct kt_gguf_bytes *b, int32_t size, const char *what, uint64_t *out);
/** A string with its length of 8 bytes in front; borrowed, without a zero byte behind it. */
kt_status kt_gguf_string(struct kt_gguf_bytes *b, const char *what, const char **text,
                         uint64_t *length);
/** A string as a name: allocated, 1 to 65535 bytes, without a NUL byte in it. */
kt_status kt_gguf_name(struct kt_gguf_bytes *b, const char *what, char **name);
/** A count of things of at least `least` bytes each: FORMAT when the rest of the file cannot hold
 * them or there are more than `most`. */
kt_status kt_gguf_count(struct kt_gguf_bytes *b, const char *what, uint64_t least, uint64_t most,
                        uint64_t *count);

/** Reads `count` pairs of key and value into a new object; json_decref it. See struct kt_gguf. */
kt_status kt_gguf_read_metadata(struct kt_gguf_bytes *b, uint64_t count, json_t **metadata);

#endif
