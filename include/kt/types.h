/* SPDX-License-Identifier: Apache-2.0 */
/** \file types.h
 * Status codes, data types and macros that every other header uses. */
#ifndef KT_TYPES_H
#define KT_TYPES_H

#include <kt/version.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define KT_BEGIN_DECLS extern "C" {
#define KT_END_DECLS }
#else
#define KT_BEGIN_DECLS
#define KT_END_DECLS
#endif

#if defined(__GNUC__)
#define KT_API __attribute__((visibility("default")))
#else
#define KT_API
#endif

KT_BEGIN_DECLS

/** What a call returns: KT_OK (0) or one of the negative numbers below. The numbers are part of the
 * ABI and never change. kt_last_error() has the sentence that belongs to the latest failure. */
typedef int32_t kt_status;

enum {
    KT_OK = 0,
    KT_ERROR_INVALID_ARGUMENT = -1, /**< a parameter or option is out of its documented range */
    KT_ERROR_OUT_OF_MEMORY = -2,    /**< host or device memory ran out; nothing was changed */
    KT_ERROR_IO = -3,               /**< the operating system refused to read or write a file */
    KT_ERROR_FORMAT = -4,           /**< a file is malformed or truncated */
    KT_ERROR_UNSUPPORTED = -5,      /**< valid, but not something this build or version can do */
    KT_ERROR_NOT_FOUND = -6,        /**< a file, tensor, key or name does not exist */
    KT_ERROR_MISMATCH = -7,  /**< two valid things do not fit each other (shapes, adapters) */
    KT_ERROR_CANCELLED = -8, /**< the cancel callback asked to stop */
    KT_ERROR_STATE = -9,     /**< calls came in an order that has no meaning */
    KT_ERROR_NUMERIC = -10,  /**< NaN or infinity where a finite number is needed */
    KT_ERROR_INTERNAL = -11  /**< a bug in libkt: please report it */
};

/** A short constant English name of a status, such as "out of memory". Never NULL; thread-safe. */
KT_API const char *kt_status_string(kt_status status);

/** Element types of tensors in checkpoints. */
typedef enum kt_dtype {
    KT_DTYPE_F32 = 0,
    KT_DTYPE_F16 = 1,
    KT_DTYPE_BF16 = 2,
    KT_DTYPE_F64 = 3,
    KT_DTYPE_I64 = 4,
    KT_DTYPE_I32 = 5,
    KT_DTYPE_U8 = 6,
    KT_DTYPE_BOOL = 7,
    KT_DTYPE_F8_E4M3 = 8,
    KT_DTYPE_I8 = 9,
    KT_DTYPE_I4 = 10,   /**< two in a byte; tensors of files hold them as U8 */
    KT_DTYPE_Q8_0 = 11, /**< this and those below: blocks of 32 or 256 elements of GGUF files */
    KT_DTYPE_Q4_0 = 12,
    KT_DTYPE_Q4_K = 13,
    KT_DTYPE_Q6_K = 14,
    KT_DTYPE_UNKNOWN = 255 /**< a tensor of a type that libkt cannot use */
} kt_dtype;

/** Name of a dtype as safetensors or GGUF spells it ("BF16", "Q4_K" ...); "?" for an unknown
 * number. Thread-safe. */
KT_API const char *kt_dtype_name(int32_t dtype);

/** Arithmetic of the linear layers. Sums are float32 in both; the router, norms, softmax, loss,
 * LoRA matrices and the optimizer are float32 always. */
typedef enum kt_compute {
    KT_COMPUTE_F32 = 0, /**< weights are widened to float32 as they are read */
    KT_COMPUTE_BF16 = 1 /**< factors rounded to bfloat16, float32 accumulation */
} kt_compute;

/** Label value of a token that takes no part in the loss. */
#define KT_IGNORE_LABEL (-100)

/** Version of the interface: rises by one with every addition to it, whatever the release is
 * called. For #if, and against kt_api_version. */
#define KT_API_VERSION 1

/** Version of the library that is loaded, as KT_VERSION: 0x000100 for 0.1.0. Thread-safe. */
KT_API uint32_t kt_version(void);

/** Its KT_API_VERSION: at least that of the headers, unless the library is older. Thread-safe. */
KT_API uint32_t kt_api_version(void);

typedef struct kt_context kt_context;
typedef struct kt_model kt_model;
typedef struct kt_rule kt_rule;
typedef struct kt_lora kt_lora;
typedef struct kt_executor kt_executor;
typedef struct kt_generator kt_generator;
typedef struct kt_optimizer kt_optimizer;
typedef struct kt_tokenizer kt_tokenizer;
typedef struct kt_dataset kt_dataset;
typedef struct kt_batch kt_batch;

KT_END_DECLS
#endif
