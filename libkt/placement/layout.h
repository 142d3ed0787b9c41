/* SPDX-License-Identifier: Apache-2.0 */
/** \file placement/layout.h
 * What a placement decides and the executor follows: which device computes a layer. Routed experts
 * and the embedding are the host's wherever their layer is. */
#ifndef KT_PLACEMENT_LAYOUT_H
#define KT_PLACEMENT_LAYOUT_H

#include "model/model.h"

enum { KT_MAX_DEVICES = 16, KT_DEVICE_NAME = 32 };

struct kt_layout {
    char devices[KT_MAX_DEVICES][KT_DEVICE_NAME]; /**< names, each once */
    int32_t num_devices;
    uint8_t *device; /**< [num_hidden_layers + 1] index of each layer's, and of the head's */
};

/** Asks the rule (NULL = all on the CPU) where the modules of each layer and lm_head are. A device
 * that is not here becomes the CPU, with a warning. Errors: UNSUPPORTED (modules of one layer on
 * different devices, too many devices), OUT_OF_MEMORY. */
kt_status kt_layout_create(const kt_model *model, const kt_rule *rule, struct kt_layout *out);
void kt_layout_free(struct kt_layout *layout);

/** Layers from `begin` up to `end` that a device computes. */
int64_t kt_layout_layers(const struct kt_layout *layout, int32_t device, int32_t begin,
                         int32_t end);

#endif
