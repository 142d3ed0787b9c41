/* SPDX-License-Identifier: Apache-2.0 */
/** \file core/room.h
 * Memory that files may take. */
#ifndef KT_CORE_ROOM_H
#define KT_CORE_ROOM_H

#include <kt/types.h>

/** Bytes that pages of files may take beside what this process has of its own, as far as its
 * control groups allow and the system has or can free some; less a margin. */
uint64_t kt_room_for_files(const kt_context *ctx);

#endif
