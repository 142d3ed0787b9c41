/* SPDX-License-Identifier: Apache-2.0 */
/** \file kt.h
 * All of libkt's public interface. Option structs are filled by their _init function, which is given
 * the caller's sizeof, so that fields can be appended without breaking callers built earlier. */
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
#include <kt/generator.h>
#include <kt/optimizer.h>
#include <kt/tokenizer.h>
#include <kt/dataset.h>

#endif
