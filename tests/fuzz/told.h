/* SPDX-License-Identifier: Apache-2.0 */
/** \file told.h
 * For targets of the program's readers: told.c stands in for programs/kt/output.c, so that nothing
 * is printed and errors are counted. */
#ifndef KT_TESTS_TOLD_H
#define KT_TESTS_TOLD_H

#include "fuzz.h"

/** Ends the process unless exactly one sentence was told since the last call, or none where `rc` is
 * APP_OK. Warnings do not count. True of APP_OK. */
bool fuzz_told(int rc);

#endif
