/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/site.h
 * A device of an executor, and what stays on it over all passes: copies of the norms and biases,
 * the mirror of the adapter, and the supply of weights. A device with host memory needs no copies.
 */
#ifndef KT_EXECUTOR_SITE_H
#define KT_EXECUTOR_SITE_H

#include "backend/device.h"
#include "executor/expert_supply.h"
#include "executor/supply.h"
#include "model/adapter.h"

/** A block of memory of a device that only grows. */
struct kt_block {
    void *memory;
    uint64_t size;
    enum kt_memory kind;
    const char *what;
};

/** Makes `block` at least `size` bytes; its contents are lost when it grows. */
kt_status kt_block_reserve(struct kt_device *device, struct kt_block *block, uint64_t size);
void kt_block_free(struct kt_device *device, struct kt_block *block);

/** Floats [begin, begin + count) of the adapter that belong to linears of this site. */
struct kt_mirrored {
    uint64_t begin, count;
};

struct kt_site {
    struct kt_device *device;
    struct kt_supply *supply;
    /* NULL on a device with host memory */
    struct kt_block vectors;         /**< as model->vectors */
    struct kt_block lora, lora_grad; /**< as lora->data and lora->grad, in `mirrored` alone */
    struct kt_mirrored *mirrored;    /**< [num_mirrored] */
    int32_t num_mirrored;
    struct kt_expert_supply *experts;
    uint64_t expert_bytes;      /**< for it, on a device without a limit */
    struct kt_mirrored *routed; /**< [num_routed] of routed experts: their gradients go to the
                                     device an expert at a time, as it is computed */
    int32_t num_routed;
    uint64_t adapter; /**< fingerprint of what `lora` has; 0 = not known */
};

/** Opens the device `name` for the units (layers, and num_hidden_layers for the head) u with
 * units[u], and for the routed experts of layers l with experts[l]; one without host memory may
 * take `limit` bytes of its own, 0 = all that there are. Errors: NOT_FOUND (the device),
 * OUT_OF_MEMORY.
 */
kt_status kt_site_open(kt_model *model, const kt_lora *lora, const char *name, const uint8_t *units,
                       const uint8_t *experts, uint64_t limit, struct kt_site *site);
void kt_site_close(struct kt_site *site);

/** Bytes that routed experts get before other weights do. */
uint64_t kt_site_expert_least(const struct kt_site *site);

/** Copies of the host's matrices to the mirror, unless it has those of the fingerprint (0 = not
 * known), and gradients both ways: all are enqueued; those to the host are there after kt_run_sync
 * of a mark on OUT. */
void kt_site_lora_in(struct kt_site *site, const struct kt_runner *run, const kt_lora *lora,
                     uint64_t fingerprint);
void kt_site_grad_in(const struct kt_site *site, const struct kt_runner *run, const kt_lora *lora);
void kt_site_grad_out(const struct kt_site *site, const struct kt_runner *run, const kt_lora *lora);
/** Those of one routed expert's linear with LoRA. */
void kt_site_linear_grad_in(const struct kt_site *site, const struct kt_runner *run,
                            const kt_lora *lora, const struct kt_linear *linear);
void kt_site_linear_grad_out(const struct kt_site *site, const struct kt_runner *run,
                             const kt_lora *lora, const struct kt_linear *linear);

/** Where a device has what the host has at `vector` (in model->vectors), `data` or `grad` (in the
 * adapter's); NULL stays NULL. */
const float *kt_site_vector(const struct kt_site *site, const kt_model *model, const float *vector);
const float *kt_site_lora(const struct kt_site *site, const kt_lora *lora, const float *data);
float *kt_site_grad(const struct kt_site *site, const kt_lora *lora, float *grad);

#endif
