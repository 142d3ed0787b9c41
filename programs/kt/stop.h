/* SPDX-License-Identifier: Apache-2.0 */
/** \file stop.h
 * Ctrl-C, and what means the same: SIGTERM, and SIGHUP of a terminal that goes away. The latter two
 * stay ignored when they were at the start (nohup). */
#ifndef KT_STOP_H
#define KT_STOP_H

/** From now on such signals are counted. The first is answered on the terminal at once with
 * `first`, the second with `second`, and a Ctrl-C after that ends the program; so does the second
 * when `second` is NULL. */
void stop_catch(const char *first, const char *second);
/** What the first will be answered with from now on. */
void stop_announce(const char *first);
/** How many have come, at most 2. */
int stop_requests(void);

#endif
