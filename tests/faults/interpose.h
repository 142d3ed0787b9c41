/* SPDX-License-Identifier: Apache-2.0 */
/** \file interpose.h
 * Takes the place of the C library's functions that give memory or do IO, for all libraries of the
 * process, and lets the n-th call of them fail. */
#ifndef KT_TESTS_FAULTS_INTERPOSE_H
#define KT_TESTS_FAULTS_INTERPOSE_H

#include <stdbool.h>

enum fault_kind {
    FAULT_ALLOC, /**< no memory */
    FAULT_IO,    /**< EIO, of every call */
    FAULT_FULL,  /**< ENOSPC, of calls that write */
    FAULT_SHORT, /**< half of what was asked for is read or written: no error */
    FAULT_NUM_KINDS
};

/** By name: alloc, io, full, short; FAULT_NUM_KINDS when it is none. */
enum fault_kind fault_kind(const char *name);

/** Counts calls of that kind from here on; call number `at` fails, none when it is 0. */
void fault_begin(enum fault_kind kind, long at);
/** How many calls there were. */
long fault_end(void);

#endif
