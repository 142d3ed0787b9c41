/* SPDX-License-Identifier: Apache-2.0 */
/** \file dataset.h
 * Supervised fine-tuning datasets through LLaMA-Factory's dataset_info.json: alpaca and sharegpt
 * formats, json and jsonl. Gives the same ids and labels as LLaMA-Factory 0.9.4. A dataset belongs
 * to a context and needs its tokenizer no longer. See kt.h for NULL, threads and lifetimes. */
#ifndef KT_DATASET_H
#define KT_DATASET_H

#include <kt/tokenizer.h>
#include <kt/types.h>

KT_BEGIN_DECLS

typedef struct kt_dataset_options {
    size_t size;               /**< sizeof(kt_dataset_options), set by the init function */
    const char *dataset_dir;   /**< folder of dataset_info.json; "data" */
    const char *dataset;       /**< comma-separated names in dataset_info.json; one that comes again
                                    counts once */
    const char *template_name; /**< as in kt_template_names() */
    int32_t cutoff_len;        /**< 2048; at least 1 */
    int64_t max_samples;       /**< of each dataset; 0 = all */
    int32_t train_on_prompt;   /**< 0 */
    int32_t mask_history;      /**< 0 */
    const char *default_system; /**< NULL = the template's */
    const char *name, *author;  /**< fill {{name}} and {{author}}; NULL = leave the text as it is */
    int32_t thinking;           /**< a kt_thinking: KT_THINKING_ON */
    uint64_t reserved[7];
} kt_dataset_options;

/** Fills `options` with the defaults above; dataset and template_name have none. */
KT_API void kt_dataset_options_init(kt_dataset_options *options, size_t size);

/** Reads, formats and tokenizes. Entries that LLaMA-Factory leaves out (no response, roles that do
 * not take turns) are left out with a warning in the log. Entries whose answer cutoff_len cuts away
 * entirely stay, as they do there, with every label KT_IGNORE_LABEL, and a warning counts them.
 * Errors name the file and the entry: NOT_FOUND, FORMAT (malformed, empty, no entry with a label),
 * INVALID_ARGUMENT (cutoff_len, dataset or template_name not given), UNSUPPORTED, MISMATCH (a
 * tokenizer of another context), CANCELLED. */
KT_API kt_status kt_dataset_load(kt_context *ctx, const kt_tokenizer *tokenizer,
                                 const kt_dataset_options *options, kt_dataset **out);
/** Lets go of a dataset, and with it of the arrays of its examples. */
KT_API void kt_dataset_free(kt_dataset *dataset);

/** Examples that can be had, those left out not among them. */
KT_API size_t kt_dataset_num_examples(const kt_dataset *dataset);

typedef struct kt_example {
    size_t size;                       /**< sizeof(kt_example), set by the caller */
    const int32_t *input_ids, *labels; /**< [length], owned by the dataset until it is split or
                                          freed; labels not shifted */
    size_t length;
    uint64_t reserved[4];
} kt_example;

/** Example `index`. Errors: INVALID_ARGUMENT (there is none, a wrong size). */
KT_API kt_status kt_dataset_get(const kt_dataset *dataset, size_t index, kt_example *example);

/** Takes the evaluation part out of `dataset` into a new one. val_size < 1: that fraction (rounded
 * up), else that number of examples. The split is the one that LLaMA-Factory makes with `seed`.
 * Arrays of examples that were had before are no longer valid. Errors: INVALID_ARGUMENT (val_size),
 * FORMAT (a part without an example), OUT_OF_MEMORY; `dataset` is as it was then. */
KT_API kt_status kt_dataset_split(kt_dataset *dataset, double val_size, uint64_t seed,
                                  kt_dataset **evaluation);

KT_END_DECLS
#endif
