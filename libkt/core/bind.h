/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/bind.h
 * Requests to the operating system about where threads run and where memory lies. A refusal is no
 * error: they only make things faster. */
#ifndef KT_CORE_BIND_H
#define KT_CORE_BIND_H

#include <kt/types.h>
#include <pthread.h>

/** Lets a thread run on these processors alone; false when the system refuses. */
bool kt_bind_thread(pthread_t thread, const int32_t *pus, int32_t num);

/** Asks for the pages that lie wholly in [memory, memory + bytes) to be on a NUMA node, and moves
 * those that are elsewhere and that no other process uses; a full node spills over to others. False
 * when the system refuses. */
bool kt_bind_pages(const void *memory, uint64_t bytes, int32_t os_node);

/** Asks for huge pages where they fit into [memory, memory + bytes) and nothing is written yet, so
 * that its addresses are found with fewer misses. */
void kt_use_huge_pages(const void *memory, uint64_t bytes);

#endif
