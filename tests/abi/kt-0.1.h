/* SPDX-License-Identifier: Apache-2.0 */
/* The interface as a program saw it that was built with the headers of 0.1, without comments: made by
 *     echo '#include <kt/kt.h>' | cc -Iinclude -IBUILD/include -E -x c - |
 *         awk '/^# /{own = /kt\/[a-z]+\.h"/; next} own && NF' | clang-format
 * It stays as it is until a release breaks the ABI. */
#include <stddef.h>
#include <stdint.h>

typedef int32_t kt_status;
enum {
    KT_OK = 0,
    KT_ERROR_INVALID_ARGUMENT = -1,
    KT_ERROR_OUT_OF_MEMORY = -2,
    KT_ERROR_IO = -3,
    KT_ERROR_FORMAT = -4,
    KT_ERROR_UNSUPPORTED = -5,
    KT_ERROR_NOT_FOUND = -6,
    KT_ERROR_MISMATCH = -7,
    KT_ERROR_CANCELLED = -8,
    KT_ERROR_STATE = -9,
    KT_ERROR_NUMERIC = -10,
    KT_ERROR_INTERNAL = -11
};
const char *kt_status_string(kt_status status);
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
    KT_DTYPE_I4 = 10,
    KT_DTYPE_Q8_0 = 11,
    KT_DTYPE_Q4_0 = 12,
    KT_DTYPE_Q4_K = 13,
    KT_DTYPE_Q6_K = 14,
    KT_DTYPE_UNKNOWN = 255
} kt_dtype;
const char *kt_dtype_name(int32_t dtype);
typedef enum kt_compute { KT_COMPUTE_F32 = 0, KT_COMPUTE_BF16 = 1 } kt_compute;
uint32_t kt_version(void);
uint32_t kt_api_version(void);
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
typedef enum kt_log_level {
    KT_LOG_ERROR = 0,
    KT_LOG_WARNING = 1,
    KT_LOG_INFO = 2,
    KT_LOG_DEBUG = 3
} kt_log_level;
enum {
    KT_ISA_AVX2 = 1u << 0,
    KT_ISA_AVX512 = 1u << 1,
    KT_ISA_AVX512_BF16 = 1u << 2,
    KT_ISA_AVX512_VNNI = 1u << 3,
    KT_ISA_AMX_BF16 = 1u << 4,
    KT_ISA_AMX_INT8 = 1u << 5,
    KT_ISA_AVX512_VBMI = 1u << 6
};
typedef void (*kt_log_callback)(void *user, int32_t level, const char *message);
typedef void (*kt_progress_callback)(void *user, const char *what, uint64_t done, uint64_t total);
typedef int32_t (*kt_cancel_callback)(void *user);
typedef void *(*kt_alloc_callback)(void *user, size_t bytes, size_t alignment);
typedef void (*kt_free_callback)(void *user, void *memory, size_t bytes);
typedef struct kt_context_options {
    size_t size;
    int32_t num_threads;
    uint32_t isa_mask;
    kt_log_callback log;
    kt_progress_callback progress;
    kt_cancel_callback cancel;
    void *user;
    uint64_t memory_limit;
    int32_t pin_threads;
    kt_alloc_callback alloc;
    kt_free_callback free;
    void *alloc_user;
    uint64_t reserved[4];
} kt_context_options;
void kt_context_options_init(kt_context_options *options, size_t size);
kt_status kt_context_create(const kt_context_options *options, kt_context **out);
void kt_context_free(kt_context *ctx);
const char *kt_last_error(const kt_context *ctx);
void kt_context_cancel(kt_context *ctx);
void kt_context_clear_cancel(kt_context *ctx);
kt_status kt_context_set_log(kt_context *ctx, kt_log_callback log, void *user);
kt_status kt_context_set_progress(kt_context *ctx, kt_progress_callback progress, void *user);
kt_status kt_context_set_cancel(kt_context *ctx, kt_cancel_callback cancel, void *user);
int32_t kt_context_num_threads(const kt_context *ctx);
const char *kt_context_cpu_description(const kt_context *ctx);
uint64_t kt_context_memory_used(const kt_context *ctx);
uint64_t kt_context_memory_peak(const kt_context *ctx);
uint64_t kt_context_host_memory(const kt_context *ctx);
void kt_free(void *pointer);
typedef struct kt_model_options {
    size_t size;
    int32_t check_finite;
    uint64_t reserved[8];
} kt_model_options;
void kt_model_options_init(kt_model_options *options, size_t size);
kt_status kt_model_load(kt_context *ctx, const char *path, const kt_model_options *options,
                        kt_model **out);
void kt_model_free(kt_model *model);
kt_status kt_model_check_finite(kt_model *model);
typedef struct kt_model_info {
    size_t size;
    const char *architecture;
    const char *path;
    int32_t num_hidden_layers, num_dense_layers;
    int32_t hidden_size, vocab_size, num_attention_heads;
    int32_t n_routed_experts, num_experts_per_tok, n_shared_experts;
    int32_t max_position_embeddings;
    int32_t bos_token_id, eos_token_id;
    uint64_t num_parameters;
    uint64_t num_active_parameters;
    uint64_t num_bytes;
    uint64_t num_skipped_bytes;
    uint64_t reserved[8];
} kt_model_info;
kt_status kt_model_get_info(const kt_model *model, kt_model_info *info);
typedef struct kt_tensor_info {
    size_t size;
    const char *name, *file;
    int32_t dtype;
    int32_t ndim;
    int64_t shape[8];
    uint64_t num_bytes;
    int32_t used;
    uint64_t reserved[4];
} kt_tensor_info;
size_t kt_model_num_tensors(const kt_model *model);
kt_status kt_model_get_tensor(const kt_model *model, size_t index, kt_tensor_info *info);
size_t kt_model_num_linears(const kt_model *model);
const char *kt_model_linear_name(const kt_model *model, size_t index);
typedef struct kt_convert_options {
    size_t size;
    int32_t to;
    int32_t experts_only;
    uint64_t reserved[8];
} kt_convert_options;
void kt_convert_options_init(kt_convert_options *options, size_t size);
kt_status kt_convert(kt_context *ctx, const char *source, const char *target,
                     const kt_convert_options *options);
kt_status kt_rule_create(kt_context *ctx, kt_rule **out);
kt_status kt_rule_load(kt_context *ctx, const char *path, kt_rule **out);
kt_status kt_rule_add(kt_rule *rule, const char *name_regex, const char *device,
                      const char *experts_backend);
const char *kt_rule_device(const kt_rule *rule, const char *module);
const char *kt_rule_experts_backend(const kt_rule *rule, const char *module);
void kt_rule_free(kt_rule *rule);
typedef struct kt_lora_options {
    size_t size;
    int32_t rank;
    float alpha;
    float dropout;
    int32_t use_rslora;
    const char *target;
    int32_t target_experts;
    uint64_t seed;
    uint64_t reserved[8];
} kt_lora_options;
void kt_lora_options_init(kt_lora_options *options, size_t size);
kt_status kt_lora_create(kt_model *model, const kt_lora_options *options, kt_lora **out);
kt_status kt_lora_load(kt_model *model, const char *path, kt_lora **out);
kt_status kt_lora_save(const kt_lora *lora, const char *path);
void kt_lora_free(kt_lora *lora);
typedef struct kt_lora_tensor {
    size_t size;
    const char *name;
    int64_t rows, cols;
    float *data;
    float *grad;
    int32_t has_grad;
    uint64_t reserved[4];
} kt_lora_tensor;
size_t kt_lora_num_tensors(const kt_lora *lora);
kt_status kt_lora_get_tensor(const kt_lora *lora, size_t index, kt_lora_tensor *out);
uint64_t kt_lora_num_parameters(const kt_lora *lora);
kt_status kt_lora_zero_grad(kt_lora *lora);
kt_status kt_lora_set_grad_state(kt_lora *lora, size_t index, int32_t state);
kt_status kt_lora_touch(kt_lora *lora);
kt_status kt_lora_set_seed(kt_lora *lora, uint64_t seed);
kt_status kt_batch_create(kt_context *ctx, kt_batch **out);
void kt_batch_free(kt_batch *batch);
kt_status kt_batch_clear(kt_batch *batch);
kt_status kt_batch_add(kt_batch *batch, const int32_t *input_ids, const int32_t *labels,
                       size_t length);
kt_status kt_batch_add_padding(kt_batch *batch, int32_t pad_id, size_t count);
size_t kt_batch_num_sequences(const kt_batch *batch);
size_t kt_batch_num_tokens(const kt_batch *batch);
size_t kt_batch_num_targets(const kt_batch *batch);
const int32_t *kt_batch_input_ids(const kt_batch *batch);
const int32_t *kt_batch_labels(const kt_batch *batch);
const int32_t *kt_batch_cu_seqlens(const kt_batch *batch);
typedef struct kt_executor_options {
    size_t size;
    int32_t compute;
    const kt_rule *rule;
    const char *experts_backend;
    int32_t logits_chunk;
    uint64_t reserved[8];
} kt_executor_options;
void kt_executor_options_init(kt_executor_options *options, size_t size);
kt_status kt_executor_create(kt_model *model, kt_lora *lora, const kt_executor_options *options,
                             kt_executor **out);
void kt_executor_free(kt_executor *executor);
const char *kt_executor_experts_backend(const kt_executor *executor, int32_t layer);
typedef enum kt_forward_mode {
    KT_FORWARD_EVAL = 0,
    KT_FORWARD_TRAIN = 1,
    KT_FORWARD_CUSTOM = 2,
    KT_FORWARD_FLAGS = 1 << 8
} kt_forward_mode;
typedef struct kt_loss {
    size_t size;
    double loss;
    double loss_sum;
    uint64_t num_targets;
    uint64_t reserved[4];
} kt_loss;
kt_status kt_executor_forward(kt_executor *executor, const kt_batch *batch, int32_t mode,
                              kt_loss *loss);
const float *kt_executor_logprobs(const kt_executor *executor);
kt_status kt_executor_backward(kt_executor *executor, const float *dlogprobs);
kt_status kt_executor_logits(kt_executor *executor, const kt_batch *batch, float *logits);
kt_status kt_executor_reserve(kt_executor *executor, size_t num_tokens);
kt_status kt_executor_set_step(kt_executor *executor, uint64_t step);
typedef struct kt_generator_options {
    size_t size;
    float temperature;
    float top_p;
    int32_t top_k;
    float repetition_penalty;
    uint64_t seed;
    int32_t max_length;
    int32_t prefill_chunk;
    uint64_t reserved[8];
} kt_generator_options;
void kt_generator_options_init(kt_generator_options *options, size_t size);
kt_status kt_generator_create(kt_executor *executor, const kt_generator_options *options,
                              kt_generator **out);
void kt_generator_free(kt_generator *generator);
kt_status kt_generator_reset(kt_generator *generator);
kt_status kt_generator_prompt(kt_generator *generator, const int32_t *input_ids, size_t length);
kt_status kt_generator_next(kt_generator *generator, int32_t *token);
const float *kt_generator_logits(const kt_generator *generator);
size_t kt_generator_length(const kt_generator *generator);
typedef struct kt_optimizer_options {
    size_t size;
    double beta1, beta2, epsilon;
    double weight_decay;
    double max_grad_norm;
    uint64_t reserved[8];
} kt_optimizer_options;
void kt_optimizer_options_init(kt_optimizer_options *options, size_t size);
kt_status kt_optimizer_create(kt_lora *lora, const kt_optimizer_options *options,
                              kt_optimizer **out);
void kt_optimizer_free(kt_optimizer *optimizer);
kt_status kt_optimizer_step(kt_optimizer *optimizer, double learning_rate, double *grad_norm);
kt_status kt_optimizer_save(const kt_optimizer *optimizer, const char *file);
kt_status kt_optimizer_load(kt_optimizer *optimizer, const char *file);
typedef struct kt_schedule {
    size_t size;
    const char *type;
    double learning_rate;
    uint64_t warmup_steps;
    uint64_t total_steps;
    double num_cycles;
    double power;
    double lr_end;
    uint64_t reserved[8];
} kt_schedule;
void kt_schedule_init(kt_schedule *schedule, size_t size);
kt_status kt_schedule_rate(kt_context *ctx, const kt_schedule *schedule, uint64_t step,
                           double *learning_rate);
kt_status kt_random_permutation(kt_context *ctx, uint64_t seed, size_t n, int64_t *order);
kt_status kt_tokenizer_load(kt_context *ctx, const char *path, kt_tokenizer **out);
void kt_tokenizer_free(kt_tokenizer *tokenizer);
int32_t kt_tokenizer_vocab_size(const kt_tokenizer *tokenizer);
int32_t kt_tokenizer_bos_id(const kt_tokenizer *tokenizer);
int32_t kt_tokenizer_eos_id(const kt_tokenizer *tokenizer);
int32_t kt_tokenizer_pad_id(const kt_tokenizer *tokenizer);
int32_t kt_tokenizer_token_id(const kt_tokenizer *tokenizer, const char *token);
kt_status kt_tokenizer_encode(const kt_tokenizer *tokenizer, const char *text, size_t length,
                              int32_t add_special, int32_t **ids, size_t *num_ids);
kt_status kt_tokenizer_decode(const kt_tokenizer *tokenizer, const int32_t *ids, size_t num_ids,
                              int32_t skip_special, char **text, size_t *length);
typedef struct kt_decode_state {
    size_t size;
    unsigned char pending[4];
    int32_t num_pending;
    uint64_t reserved[2];
} kt_decode_state;
kt_status kt_tokenizer_decode_next(const kt_tokenizer *tokenizer, kt_decode_state *state,
                                   int32_t id, char *out, size_t capacity, size_t *length);
typedef struct kt_message {
    size_t size;
    const char *role;
    const char *content;
    uint64_t reserved[4];
} kt_message;
const char *kt_template_names(void);
typedef enum kt_thinking {
    KT_THINKING_ON = 0,
    KT_THINKING_OFF = 1,
    KT_THINKING_EITHER = 2
} kt_thinking;
kt_status kt_tokenizer_apply_template(const kt_tokenizer *tokenizer, const char *template_name,
                                      const kt_message *messages, size_t num_messages,
                                      int32_t **ids, size_t *num_ids);
kt_status kt_tokenizer_apply_template_thinking(const kt_tokenizer *tokenizer,
                                               const char *template_name, int32_t thinking,
                                               const kt_message *messages, size_t num_messages,
                                               int32_t **ids, size_t *num_ids);
kt_status kt_tokenizer_stop_ids(const kt_tokenizer *tokenizer, const char *template_name,
                                int32_t *ids, size_t capacity, size_t *num);
typedef struct kt_dataset_options {
    size_t size;
    const char *dataset_dir;
    const char *dataset;
    const char *template_name;
    int32_t cutoff_len;
    int64_t max_samples;
    int32_t train_on_prompt;
    int32_t mask_history;
    const char *default_system;
    const char *name, *author;
    int32_t thinking;
    uint64_t reserved[7];
} kt_dataset_options;
void kt_dataset_options_init(kt_dataset_options *options, size_t size);
kt_status kt_dataset_load(kt_context *ctx, const kt_tokenizer *tokenizer,
                          const kt_dataset_options *options, kt_dataset **out);
void kt_dataset_free(kt_dataset *dataset);
size_t kt_dataset_num_examples(const kt_dataset *dataset);
typedef struct kt_example {
    size_t size;
    const int32_t *input_ids, *labels;
    size_t length;
    uint64_t reserved[4];
} kt_example;
kt_status kt_dataset_get(const kt_dataset *dataset, size_t index, kt_example *example);
kt_status kt_dataset_split(kt_dataset *dataset, double val_size, uint64_t seed,
                           kt_dataset **evaluation);
