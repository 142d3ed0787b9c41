/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/module.h
 * Opens devices of modules (backend/plugin.h). */
#ifndef KT_BACKENDS_MODULE_H
#define KT_BACKENDS_MODULE_H

#include "backend/device.h"

/** Opens the device "KIND" or "KIND:N" of libkt-KIND.so in `folder`; NULL = where libkt is. A
 * module stays loaded. Errors: NOT_FOUND (no such file, one that cannot be loaded or was built for
 * another libkt; the sentence says which), those of the module. */
kt_status kt_module_open(kt_context *ctx, const char *folder, const char *name,
                         struct kt_device **out);

/** The same for the registry. */
kt_status kt_module_open_beside(kt_context *ctx, const char *name, struct kt_device **out);

#endif
