/* SPDX-License-Identifier: Apache-2.0 */
/** \file placement/balance.h
 * How fast host and device are beside each other, and whether sharing pays: found by trying. One of
 * the first passes is the device's alone, the others are shared and tell the rates of both, each
 * better than the one before; then the host has one alone, unless that is hopeless, and the device
 * another one where it was close. The fastest is what goes on, until passes become slower than one
 * of the others was. Functions of what was measured: there is no clock here, and all that decides
 * is in whole numbers, which a record keeps exactly. */
#ifndef KT_PLACEMENT_BALANCE_H
#define KT_PLACEMENT_BALANCE_H

#include <kt/types.h>

enum kt_balance_mode { KT_BALANCE_BOTH, KT_BALANCE_DEVICE, KT_BALANCE_HOST, KT_BALANCE_MODES };

/** What passes took. Told seconds are those of tables, of rates that nobody measured here. */
struct kt_balance_measure {
    double seconds;        /**< of whole passes */
    double device_all;     /**< told seconds of all experts on the device */
    double host_all;       /**< the same on the host */
    double host, device;   /**< told seconds of the shares that were made */
    double host_seconds;   /**< from knowing a layer's share until the host's was done */
    double device_seconds; /**< until the device's was done; at most, where it was done first */
    double waited;         /**< how much of that the host waited, with its own share done */
};

enum { KT_BALANCE_SETTLED = 7, KT_BALANCE_WINDOW = 16 };

/** Of passes in one direction, over about as many tokens. */
struct kt_balance {
    int32_t trial;                    /**< the next one; KT_BALANCE_SETTLED = no more */
    int32_t mode;                     /**< a kt_balance_mode: what the next pass does */
    int64_t host, device;             /**< thousandths: seconds for each that is told */
    int64_t scale;                    /**< thousandths: told host seconds, in told device seconds */
    int64_t best_scale;               /**< with which sharing was fastest */
    int64_t scores[KT_BALANCE_MODES]; /**< millionths of pass seconds for each of device_all in the
                                           fastest or latest passes; 0 = unknown */
    int64_t window;                   /**< passes after which a settled one looks back */
    /* not recorded */
    int64_t passes; /**< since the latest decision */
    struct kt_balance_measure since;
};

enum kt_balance_event { KT_BALANCE_NOTHING, KT_BALANCE_FOUND, KT_BALANCE_SWITCHED };

/** Nothing is known but that a host is slower than it tells beside a device which reads its memory.
 */
void kt_balance_init(struct kt_balance *balance);

/** A pass was made. Between these it stays as it is. */
void kt_balance_count(struct kt_balance *balance, const struct kt_balance_measure *measure);

/** Decides what the next pass does, if there were passes enough. */
enum kt_balance_event kt_balance_decide(struct kt_balance *balance);

/** The same for a decision that will stand: no side is tried alone, and the search ends, if it had
 * begun. */
enum kt_balance_event kt_balance_hold(struct kt_balance *balance);

/** Less than this gain is not worth sharing: more while nobody measured. */
double kt_balance_worth_it(const struct kt_balance *balance);

enum { KT_BALANCE_TEXT = 256 };

/** As text of at most KT_BALANCE_TEXT bytes, 0 included; its length. */
int kt_balance_write(const struct kt_balance *balance, char *text);
/** What kt_balance_write wrote; bytes read, 0 where it is something else. */
int kt_balance_read(struct kt_balance *balance, const char *text);

#endif
