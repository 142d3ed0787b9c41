/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/yaml.h
 * YAML files with errors that name file, line and key. Nodes are libyaml's, owned by the document.
 */
#ifndef KT_FORMATS_YAML_H
#define KT_FORMATS_YAML_H

#include <kt/types.h>
#include <yaml.h>

#include "formats/yaml_scan.h"

struct kt_yaml {
    kt_context *ctx;
    char *path;
    yaml_document_t document;
};

/** Reads the first document of a file. kt_yaml_free(*out) when done. Errors: those of kt_file_read;
 * FORMAT with the line of a syntax error or of what is too much (yaml_scan.h), or for an empty
 * document. */
kt_status kt_yaml_load(kt_context *ctx, const char *path, uint64_t max_bytes, struct kt_yaml **out);
void kt_yaml_free(struct kt_yaml *yaml);

yaml_node_t *kt_yaml_root(struct kt_yaml *yaml);
/** Items of a sequence, or pairs of a mapping. */
size_t kt_yaml_size(const yaml_node_t *node);
yaml_node_t *kt_yaml_item(struct kt_yaml *yaml, const yaml_node_t *sequence, size_t index);
/** Text of a scalar, "" for other nodes. */
const char *kt_yaml_text(const yaml_node_t *node);

/** FORMAT unless `node` is of this type; `what` names it in the sentence. */
kt_status kt_yaml_expect(struct kt_yaml *yaml, const yaml_node_t *node, yaml_node_type_t type,
                         const char *what);
/** The value of a key, NULL when it is absent or null; FORMAT when it is of another type. */
kt_status kt_yaml_get(struct kt_yaml *yaml, const yaml_node_t *mapping, const char *key,
                      yaml_node_type_t type, yaml_node_t **value);
/** FORMAT when a key of the mapping is not in the NULL-terminated list. */
kt_status kt_yaml_allow(struct kt_yaml *yaml, const yaml_node_t *mapping, const char *const *keys);

/** Records FORMAT: "path: line N: text". */
kt_status kt_yaml_fail(struct kt_yaml *yaml, const yaml_node_t *node, const char *text);

#endif
