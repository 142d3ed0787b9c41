/* SPDX-License-Identifier: Apache-2.0 */
/** \file bar.h
 * A progress bar in the last line of a terminal, on standard output. */
#ifndef KT_BAR_H
#define KT_BAR_H

/** Draws over the bar that is there. `share` is from 0 to 1; `text` is cut at the right border. */
void bar_draw(double share, const char *text);
/** Removes it, so that lines can be printed; fine where none is shown. */
void bar_clear(void);

#endif
