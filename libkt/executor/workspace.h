/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/workspace.h
 * The memory that passes of one kind (training steps, or one generator's chunks) work in, kept from
 * one to the next. All of it is reserved before anything is computed. */
#ifndef KT_EXECUTOR_WORKSPACE_H
#define KT_EXECUTOR_WORKSPACE_H

#include "executor/pass.h"

struct kt_workspace {
    struct kt_block activations[KT_MAX_DEVICES]; /**< of each device */
    struct kt_block feeds[KT_MAX_DEVICES];
    struct kt_block crossing;  /**< the host's side of devices without host memory */
    struct kt_block host_feed; /**< filled by the host; a device with host memory reads it there */
    struct kt_feed feed;       /**< addresses in host_feed */
    struct kt_feed_sizes feed_sizes;
};

/** `what` names the activations in errors. */
void kt_workspace_init(struct kt_workspace *workspace, const char *what);
void kt_workspace_free(struct kt_workspace *workspace, const struct kt_executor *executor);

/** Room for a feed of these sizes on the host: workspace->feed. Errors: OUT_OF_MEMORY. */
kt_status kt_workspace_feed(struct kt_workspace *workspace, const struct kt_executor *executor,
                            const struct kt_feed_sizes *sizes);

/** Bytes of arenas and crossing that a pass has measured; UINT64_MAX when one overflowed. */
uint64_t kt_workspace_size(const struct kt_pass *measured);

/** Reserves what a pass has measured, scratch of devices included, and gives what is left to
 * weights. Errors: OUT_OF_MEMORY. */
kt_status kt_workspace_reserve(struct kt_workspace *workspace, const struct kt_pass *measured);

/** Scratch and room for weights alone: other passes of the executor share it and may have failed to
 * grow it. */
kt_status kt_workspace_reserve_scratch(const struct kt_pass *measured);

/** Gives the workspace to a pass over the same tokens, and sends the feed and the adapter to
 * devices; `adapter` is its fingerprint, 0 = it may have changed. */
void kt_workspace_enter(struct kt_workspace *workspace, struct kt_executor *executor,
                        struct kt_pass *pass, enum kt_pass_kind kind, uint64_t adapter);

#endif
