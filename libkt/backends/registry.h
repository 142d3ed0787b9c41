/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/registry.h
 * Devices and experts backends by name. */
#ifndef KT_BACKENDS_REGISTRY_H
#define KT_BACKENDS_REGISTRY_H

#include "backend/experts.h"

/** Opens "cpu" or "cpu:N", each a device of its own with the context's threads; "cuda" or "cuda:N"
 * of libkt-cuda.so, where there is one; or for tests "cpu-far" or "cpu-far:N" (see
 * backends/cpu_far/far.h). Errors: NOT_FOUND for a device this build or machine
 * lacks. Close with kt_device_close. */
kt_status kt_device_open(kt_context *ctx, const char *name, struct kt_device **out);
/** Opens and closes the device. Errors: as kt_device_open's. */
kt_status kt_device_probe(kt_context *ctx, const char *name);

/** Opens "reference", "cpu" (also known as "llamafile"), "amx", "amx-int8" (amx that multiplies
 * INT8 weights in INT8), for tests "amx-emulated" and "amx-int8-emulated", or "auto": amx where it
 * can run, else cpu. Errors: NOT_FOUND (the sentence says what is missing, or what there is). */
kt_status kt_experts_open(kt_context *ctx, const char *name, struct kt_experts **out);
void kt_experts_close(struct kt_experts *e);

#endif
