/* SPDX-License-Identifier: Apache-2.0 */
/** \file executor/sharing.h
 * What an executor knows of sharing routed experts between the host and devices: a balance of each
 * direction and about each number of tokens. Steps that go forward and back are measured, and
 * decide when both are done, so that passes between two backwards are divided alike. */
#ifndef KT_EXECUTOR_SHARING_H
#define KT_EXECUTOR_SHARING_H

#include "executor/pass.h"
#include "placement/balance.h"

struct kt_sharing;

/** Errors: OUT_OF_MEMORY. */
kt_status kt_sharing_create(kt_context *ctx, struct kt_sharing **out);
/** NULL is allowed. */
void kt_sharing_free(struct kt_sharing *sharing);

/** A pass of a step begins, and is done; between them shares are measured. */
void kt_sharing_begin(const struct kt_pass *pass, bool backward);
void kt_sharing_end(const struct kt_pass *pass, bool backward);

/** How a call of the pass should be divided; a constant until the next decision. */
const struct kt_balance *kt_sharing_balance(const struct kt_pass *pass, bool backward);

/** A layer of the pass would take so many told seconds on the host, and on the device. */
void kt_sharing_count(const struct kt_pass *pass, double host_all, double device_all);
/** Where the pass is measured, or NULL. */
struct kt_balance_measure *kt_sharing_measure(const struct kt_pass *pass);
/** Whether its shares are, too: while a balance is looked for, but in passes of the host alone. */
bool kt_sharing_looks(const struct kt_pass *pass, bool backward);

#endif
