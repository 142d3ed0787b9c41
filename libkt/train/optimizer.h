/* SPDX-License-Identifier: Apache-2.0 */
/** \file train/optimizer.h
 * The optimizer from inside, for its state file. */
#ifndef KT_TRAIN_OPTIMIZER_H
#define KT_TRAIN_OPTIMIZER_H

#include <kt/optimizer.h>

#include "model/adapter.h"

struct kt_optimizer {
    KT_HANDLE;
    kt_lora *lora; /**< held */
    kt_optimizer_options options;
    uint64_t *steps;       /**< [num_attached]: updates of this linear's A and B so far */
    float *first, *second; /**< moments, laid out as lora->data; unset where steps is 0 */
    double *squares;       /**< [num_attached] scratch: squared gradient norms */
};

#endif
