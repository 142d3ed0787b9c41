/* SPDX-License-Identifier: Apache-2.0 */
/** \file lost.h
 * Files that shrink while kt reads them as memory. libkt looks before each layer whether all is
 * there still; a page that goes away within one is a fault that the process cannot go on from. */
#ifndef KT_LOST_H
#define KT_LOST_H

/** From here on such a fault ends the program with a sentence that names the file and exit code 1,
 * and leaves what a kill leaves: whole checkpoints, and unfinished files that the next run removes.
 */
void lost_catch(void);

/** What is said after that sentence, how to go on: borrowed until the next call; NULL = that the
 * same command does it. */
void lost_advise(const char *how);

#endif
