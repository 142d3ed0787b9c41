/* SPDX-License-Identifier: Apache-2.0 */
/** \file dataset.h
 * Supervised fine-tuning datasets through LLaMA-Factory's dataset_info.json: alpaca and sharegpt
 * formats, json and jsonl. Gives the same ids and labels as LLaMA-Factory 0.9.4. */
#ifndef KT_DATASET_H
#define KT_DATASET_H

#include <kt/tokenizer.h>
#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_dataset_options {
    size_t size;
    const char *dataset_dir;    /**< folder of dataset_info.json; "data" */
    const char *dataset;        /**< comma-separated names in dataset_info.json; one that comes again
                                     counts once */
    const char *template_name;  /**< as in kt_template_names() */
    int32_t cutoff_len;         /**< 2048; at least 1 */
    int64_t max_samples;        /**< of each dataset; 0 = all */
    int32_t train_on_prompt;    /**< 0 */
    int32_t mask_history;       /**< 0 */
    const char *default_system; /**< NULL = the template's */
    const char *name, *author;  /**< fill {{name}} and {{author}}; NULL = leave the text as it is */
    kt_thinking thinking;       /**< KT_THINKING_ON */
    uint64_t reserved[7];
} kt_dataset_options;

KT_API void kt_dataset_options_init(kt_dataset_options *options, size_t size);

/** Reads, formats and tokenizes. Entries that LLaMA-Factory leaves out (no response, roles that do
 * not take turns) are left out with a warning in the log. Entries whose answer cutoff_len cuts away
 * entirely stay, as they do there, with every label KT_IGNORE_LABEL, and a warning counts them.
 * Errors name the file and the entry: NOT_FOUND, FORMAT (malformed, empty, no entry with a label),
 * INVALID_ARGUMENT (cutoff_len), UNSUPPORTED. */
KT_API kt_status kt_dataset_load(kt_context *ctx, const kt_tokenizer *tokenizer,
                                 const kt_dataset_options *options, kt_dataset **out);
KT_API void kt_dataset_free(kt_dataset *dataset);

KT_API size_t kt_dataset_num_examples(const kt_dataset *dataset);

typedef struct kt_example {
    size_t size;
    const int32_t *input_ids, *labels; /**< [length], owned by the dataset; labels not shifted */
    size_t length;
    uint64_t reserved[4];
} kt_example;

KT_API kt_status kt_dataset_get(const kt_dataset *dataset, size_t index, kt_example *example);

/** Takes the evaluation part out of `dataset` into a new one. val_size < 1: that fraction (rounded
 * up), else that number of examples. The split is the one that LLaMA-Factory makes with `seed`. */
KT_API kt_status kt_dataset_split(kt_dataset *dataset, double val_size, uint64_t seed,
                                  kt_dataset **evaluation);

KT_END_DECLS
#endif
