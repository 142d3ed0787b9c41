/* SPDX-License-Identifier: Apache-2.0 */
/** \file kt.h
 * All of libkt's public interface, and the rules that hold for every function of it.
 *
 * Errors. A function that can fail returns a kt_status. After one that is not KT_OK,
 * kt_last_error(ctx) has a sentence: what failed, where (file, key, tensor), what to do.
 * INVALID_ARGUMENT, STATE and OUT_OF_MEMORY can come from any function; headers name them only
 * where there is more to say.
 *
 * NULL. A handle, text, array or result's place must be given unless its comment allows NULL:
 * KT_ERROR_INVALID_ARGUMENT otherwise. Where there was no handle to find the context by, the
 * sentence is at kt_last_error(NULL). Functions that tell a number or a pointer give 0 or NULL for
 * a NULL handle; ids are -1. Every free function takes NULL and does nothing.
 *
 * Handles. What a function gives in `out` is the host's until the free function of its kind. *out
 * is NULL after a failure. Handles may be freed in any order: what others still need lives on until
 * the last of them is freed, a context and its threads too. After its free function, a handle must
 * not be used. Freeing is allowed in callbacks; what a running call works with then lives until it
 * returns.
 *
 * Threads. A context and the handles made from it are for one thread at a time; see context.h, also
 * for what callbacks may call. Functions that can fail, and are no mere look-ups (_get_), answer
 * KT_ERROR_STATE when another call runs in the context, and have changed nothing then.
 *
 * Strings and arrays that a function returns belong to the handle and live as long as it does,
 * unless its comment says otherwise; those that it takes are copied or only read during the call.
 *
 * Structs that begin with `size`: option structs are filled by their _init function, which is given
 * the caller's sizeof, and then changed; NULL in their place means defaults. In structs that libkt
 * fills and in kt_message and kt_decode_state the caller sets `size` to the struct's sizeof. So
 * fields can be added without breaking callers that were built earlier. `reserved` stays zero:
 * bytes that this library does not know are refused (INVALID_ARGUMENT), since a newer caller means
 * something by them; in a struct that libkt fills, its old content does not matter. Numbers that
 * stand for one of an enum's constants are int32_t fields; any other number is INVALID_ARGUMENT.
 *
 * What is behind #ifdef KT_EXPERIMENTAL may still change or go from one release to the next; define
 * it before including to use it. */
#ifndef KT_H
#define KT_H

#include <kt/types.h>
#include <kt/context.h>
#include <kt/model.h>
#include <kt/convert.h>
#include <kt/rule.h>
#include <kt/lora.h>
#include <kt/batch.h>
#include <kt/executor.h>
#include <kt/plan.h>
#include <kt/trace.h>
#include <kt/generator.h>
#include <kt/optimizer.h>
#include <kt/tokenizer.h>
#include <kt/dataset.h>

#endif
