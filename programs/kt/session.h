/* SPDX-License-Identifier: Apache-2.0 */
/** \file session.h
 * The libkt handles that commands share, opened from a configuration. Every function returns an
 * exit code and has told the error, with the key it belongs to. */
#ifndef KT_SESSION_H
#define KT_SESSION_H

#include <kt/kt.h>

#include "config.h"

typedef struct session {
    const config *cfg;
    uint64_t memory_limit; /**< bytes, of the key memory_limit; 0 = none */
    uint64_t gpu_memory;   /**< likewise kt_gpu_memory; 0 = what is free */
    int32_t num_cores;     /**< that this process may use */
    kt_context *ctx;
    kt_model *model;
    kt_tokenizer *tokenizer;
    kt_lora *lora;
    kt_executor *executor;
} session;

/** The context: threads from cpu_infer, at most one for each core, bound unless kt_pin_threads is
 * false; warnings of the library go to stderr. */
int session_open(session *s, const config *cfg);
/** Tells when cpu_infer asks for more threads than there are cores. */
void session_warn_of_threads(const session *s);
/** Frees whatever is open. */
void session_close(session *s);

/** APP_OK for KT_OK; else tells the library's error under `key`, or under memory_limit when that is
 * what ran out. */
int session_told(const session *s, const char *key, kt_status status);

int session_load_tokenizer(session *s);
/** Needs `template`: one that libkt knows. */
int session_check_template(session *s);
int session_load_model(session *s);
/** adapter_name_or_path, when it is set; `session.lora` stays NULL otherwise. */
int session_load_adapter(session *s);
/** What infer_dtype asks for; auto = float32 for a checkpoint of float32 weights, else bfloat16. */
kt_compute session_infer_compute(const session *s);
/** The executor, with the rule of kt_optimize_rule. Warns of more cpu_infer than there are cores.
 */
int session_create_executor(session *s, kt_compute compute);

/** Which backends compute the routed experts, such as "cpu" or "amx in layers 1 to 3, reference
 * in layer 4"; NULL for a model without any. The caller frees it. */
char *session_experts(const session *s);

/** The folder or file that `key` names, which must be set and exist. */
int session_check_path(const config *cfg, const char *key);

/** What enable_thinking says; null stands for itself. */
kt_thinking session_thinking(const config *cfg);

/** The dataset of `key` (dataset or eval_dataset). */
int session_load_dataset(session *s, const char *key, kt_dataset **out);

/** Asked by long library calls whether to stop; NULL = never. */
extern int (*session_cancelled)(void);

/** Told what long library calls have done so far; NULL = nobody. */
extern void (*session_progress)(const char *what, uint64_t done, uint64_t total);

/** Called before a warning is printed, so that a progress line can be cleared; NULL = none. */
extern void (*session_before_warning)(void);

#endif
