/* SPDX-License-Identifier: Apache-2.0 */
/** \file formats/yaml_scan.h
 * A look at a YAML text before a document is made of it. libyaml takes time that is quadratic in
 * the depth and in the number of anchors, and aliases let a short text stand for an endless one.
 * Needs libyaml alone: the program kt compiles it for its own configurations, too. */
#ifndef KT_FORMATS_YAML_SCAN_H
#define KT_FORMATS_YAML_SCAN_H

#include <stddef.h>

/** Text of a file; longer ones are not configurations. */
#define KT_YAML_MAX ((size_t)1 << 20)

/** NULL, or what is too much, with its line. A syntax error is left to whoever reads the document,
 * and so is missing memory. */
const char *kt_yaml_scan(const char *text, size_t size, size_t *line);

#endif
