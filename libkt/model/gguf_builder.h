/* SPDX-License-Identifier: Apache-2.0 */
/** \file model/gguf_builder.h
 * A configuration in the words of config.json, made from a GGUF file's metadata: how keys are
 * copied (gguf_keys.c), what all architectures share (gguf_config.c), and what each has of its own
 * (gguf_architectures.c). */
#ifndef KT_MODEL_GGUF_BUILDER_H
#define KT_MODEL_GGUF_BUILDER_H

#include "model/gguf.h"

struct kt_gguf_builder {
    const struct kt_gguf *gguf;
    struct kt_json json;      /**< the metadata */
    const char *architecture; /**< general.architecture, the prefix of its keys */
    json_t *config;
};

enum { KT_GGUF_KEY_BYTES = 128 };

/** "architecture.key" in `text`; returns `text`. The functions below take keys without prefix. */
const char *kt_gguf_full_key(const struct kt_gguf_builder *b, const char *key,
                             char text[KT_GGUF_KEY_BYTES]);
/** Whether the key is there and not null. */
bool kt_gguf_has(const struct kt_gguf_builder *b, const char *key);
/** An integer of at least 0; what is listed for each layer must be alike in all. */
kt_status kt_gguf_get(const struct kt_gguf_builder *b, const char *key, enum kt_json_need need,
                      int64_t *value);

/** config[name] = value, which is taken; NULL is no memory. */
kt_status kt_gguf_put(const struct kt_gguf_builder *b, const char *name, json_t *value);
/** config[name] = the integer at `key`. */
kt_status kt_gguf_copy(const struct kt_gguf_builder *b, const char *key, enum kt_json_need need,
                       const char *name);
/** The same for pairs {key, name}, all required, until {NULL}. */
kt_status kt_gguf_copy_required(const struct kt_gguf_builder *b, const char *const pairs[][2]);
/** to[name] = the number at `key`, if there is one. */
kt_status kt_gguf_copy_real(const struct kt_gguf_builder *b, const char *key, json_t *to,
                            const char *name);

/** What config.json of an architecture has of its own. */
struct kt_gguf_architecture {
    const char *name; /**< in general.architecture */
    kt_status (*build)(const struct kt_gguf_builder *b);
};

/** Ends with a name of NULL. */
extern const struct kt_gguf_architecture kt_gguf_architectures[];

#endif
