# SPDX-License-Identifier: Apache-2.0
"""Prototypes of libkt's functions, as its headers have them, and what ctypes makes of them.

tests/python/test_abi.py compares them with the headers.
"""
from __future__ import annotations

import ctypes
from typing import Any, Iterator, List, Tuple

#: KT_API_VERSION of the headers that this package was written for.
API_VERSION = 1

PROTOTYPES = """
const char *kt_context_cpu_description(const kt_context *)
const char *kt_dtype_name(int32_t)
const char *kt_executor_experts_backend(const kt_executor *, int32_t)
const char *kt_last_error(const kt_context *)
const char *kt_model_linear_name(const kt_model *, size_t)
const char *kt_rule_device(const kt_rule *, const char *)
const char *kt_rule_experts_backend(const kt_rule *, const char *)
const char *kt_status_string(kt_status)
const char *kt_template_names(void)
const float *kt_executor_logprobs(const kt_executor *)
const float *kt_generator_logits(const kt_generator *)
const int32_t *kt_batch_cu_seqlens(const kt_batch *)
const int32_t *kt_batch_input_ids(const kt_batch *)
const int32_t *kt_batch_labels(const kt_batch *)
int32_t kt_context_num_threads(const kt_context *)
int32_t kt_tokenizer_bos_id(const kt_tokenizer *)
int32_t kt_tokenizer_eos_id(const kt_tokenizer *)
int32_t kt_tokenizer_pad_id(const kt_tokenizer *)
int32_t kt_tokenizer_token_id(const kt_tokenizer *, const char *)
int32_t kt_tokenizer_vocab_size(const kt_tokenizer *)
kt_status kt_batch_add(kt_batch *, const int32_t *, const int32_t *, size_t)
kt_status kt_batch_add_padding(kt_batch *, int32_t, size_t)
kt_status kt_batch_clear(kt_batch *)
kt_status kt_batch_create(kt_context *, kt_batch * *)
kt_status kt_context_create(const kt_context_options *, kt_context * *)
kt_status kt_context_set_cancel(kt_context *, kt_cancel_callback, void *)
kt_status kt_context_set_log(kt_context *, kt_log_callback, void *)
kt_status kt_context_set_progress(kt_context *, kt_progress_callback, void *)
kt_status kt_convert(kt_context *, const char *, const char *, const kt_convert_options *)
kt_status kt_dataset_get(const kt_dataset *, size_t, kt_example *)
kt_status kt_dataset_load(kt_context *, const kt_tokenizer *, const kt_dataset_options *,
    kt_dataset * *)
kt_status kt_dataset_split(kt_dataset *, double, uint64_t, kt_dataset * *)
kt_status kt_executor_backward(kt_executor *, const float *)
kt_status kt_executor_create(kt_model *, kt_lora *, const kt_executor_options *, kt_executor * *)
kt_status kt_executor_forward(kt_executor *, const kt_batch *, int32_t, kt_loss *)
kt_status kt_executor_get_sharing(kt_executor *, const char * *)
kt_status kt_executor_logits(kt_executor *, const kt_batch *, float *)
kt_status kt_executor_reserve(kt_executor *, size_t)
kt_status kt_executor_set_sharing(kt_executor *, const char *)
kt_status kt_executor_set_step(kt_executor *, uint64_t)
kt_status kt_generator_create(kt_executor *, const kt_generator_options *, kt_generator * *)
kt_status kt_generator_next(kt_generator *, int32_t *)
kt_status kt_generator_prompt(kt_generator *, const int32_t *, size_t)
kt_status kt_generator_reset(kt_generator *)
kt_status kt_lora_create(kt_model *, const kt_lora_options *, kt_lora * *)
kt_status kt_lora_get_tensor(const kt_lora *, size_t, kt_lora_tensor *)
kt_status kt_lora_load(kt_model *, const char *, kt_lora * *)
kt_status kt_lora_save(const kt_lora *, const char *)
kt_status kt_lora_set_grad_state(kt_lora *, size_t, int32_t)
kt_status kt_lora_set_seed(kt_lora *, uint64_t)
kt_status kt_lora_touch(kt_lora *)
kt_status kt_lora_zero_grad(kt_lora *)
kt_status kt_model_check_finite(kt_model *)
kt_status kt_model_get_info(const kt_model *, kt_model_info *)
kt_status kt_model_get_tensor(const kt_model *, size_t, kt_tensor_info *)
kt_status kt_model_load(kt_context *, const char *, const kt_model_options *, kt_model * *)
kt_status kt_optimizer_create(kt_lora *, const kt_optimizer_options *, kt_optimizer * *)
kt_status kt_optimizer_load(kt_optimizer *, const char *)
kt_status kt_optimizer_save(const kt_optimizer *, const char *)
kt_status kt_optimizer_step(kt_optimizer *, double, double *)
kt_status kt_plan_create(const kt_executor *, const kt_plan_options *, kt_plan * *)
kt_status kt_plan_get_device(const kt_plan *, size_t, kt_device_plan *)
kt_status kt_plan_get_total(const kt_plan *, kt_device_plan *)
kt_status kt_random_permutation(kt_context *, uint64_t, size_t, int64_t *)
kt_status kt_rule_add(kt_rule *, const char *, const char *, const char *)
kt_status kt_rule_create(kt_context *, kt_rule * *)
kt_status kt_rule_load(kt_context *, const char *, kt_rule * *)
kt_status kt_schedule_rate(kt_context *, const kt_schedule *, uint64_t, double *)
kt_status kt_tokenizer_apply_template_thinking(const kt_tokenizer *, const char *, int32_t, const
    kt_message *, size_t, int32_t * *, size_t *)
kt_status kt_tokenizer_decode(const kt_tokenizer *, const int32_t *, size_t, int32_t, char * *,
    size_t *)
kt_status kt_tokenizer_decode_next(const kt_tokenizer *, kt_decode_state *, int32_t, char *,
    size_t, size_t *)
kt_status kt_tokenizer_encode(const kt_tokenizer *, const char *, size_t, int32_t, int32_t * *,
    size_t *)
kt_status kt_tokenizer_load(kt_context *, const char *, kt_tokenizer * *)
kt_status kt_tokenizer_stop_ids(const kt_tokenizer *, const char *, int32_t *, size_t, size_t *)
kt_status kt_trace_create(kt_context *, const kt_trace_options *, kt_trace * *)
kt_status kt_trace_finish(kt_trace *)
kt_status kt_trace_get_row(const kt_trace *, size_t, kt_trace_row *)
size_t kt_batch_num_sequences(const kt_batch *)
size_t kt_batch_num_targets(const kt_batch *)
size_t kt_batch_num_tokens(const kt_batch *)
size_t kt_dataset_num_examples(const kt_dataset *)
size_t kt_generator_length(const kt_generator *)
size_t kt_lora_num_tensors(const kt_lora *)
size_t kt_model_num_linears(const kt_model *)
size_t kt_model_num_tensors(const kt_model *)
size_t kt_plan_num_devices(const kt_plan *)
size_t kt_trace_num_rows(const kt_trace *)
uint32_t kt_api_version(void)
uint32_t kt_version(void)
uint64_t kt_context_host_memory(const kt_context *)
uint64_t kt_context_memory_peak(const kt_context *)
uint64_t kt_context_memory_used(const kt_context *)
uint64_t kt_lora_num_parameters(const kt_lora *)
void kt_batch_free(kt_batch *)
void kt_context_cancel(kt_context *)
void kt_context_clear_cancel(kt_context *)
void kt_context_free(kt_context *)
void kt_context_options_init(kt_context_options *, size_t)
void kt_convert_options_init(kt_convert_options *, size_t)
void kt_dataset_free(kt_dataset *)
void kt_dataset_options_init(kt_dataset_options *, size_t)
void kt_executor_free(kt_executor *)
void kt_executor_options_init(kt_executor_options *, size_t)
void kt_free(void *)
void kt_generator_free(kt_generator *)
void kt_generator_options_init(kt_generator_options *, size_t)
void kt_lora_free(kt_lora *)
void kt_lora_options_init(kt_lora_options *, size_t)
void kt_model_free(kt_model *)
void kt_model_options_init(kt_model_options *, size_t)
void kt_optimizer_free(kt_optimizer *)
void kt_optimizer_options_init(kt_optimizer_options *, size_t)
void kt_plan_free(kt_plan *)
void kt_plan_options_init(kt_plan_options *, size_t)
void kt_rule_free(kt_rule *)
void kt_schedule_init(kt_schedule *, size_t)
void kt_tokenizer_free(kt_tokenizer *)
void kt_trace_free(kt_trace *)
void kt_trace_options_init(kt_trace_options *, size_t)
""".replace("\n    ", " ").strip().splitlines()

CALLBACKS = """
kt_cancel_callback = int32_t (void *)
kt_log_callback = void (void *, int32_t, const char *)
kt_progress_callback = void (void *, const char *, uint64_t, uint64_t)
""".strip().splitlines()

_NUMBERS = {"int32_t": ctypes.c_int32, "kt_status": ctypes.c_int32, "uint32_t": ctypes.c_uint32,
            "uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t, "double": ctypes.c_double,
            "void": None}


def ctype(text: str) -> Any:
    """What ctypes calls a C type. Pointers are c_void_p, but texts c_char_p."""
    if text == "const char *":
        return ctypes.c_char_p
    if text.endswith("*") or text.endswith("_callback"):
        return ctypes.c_void_p
    return _NUMBERS[text]


def _parameters(text: str) -> List[str]:
    return [] if text == "void" else text.split(", ")


def functions() -> Iterator[Tuple[str, Any, List[Any]]]:
    """Name, type of the result and types of the parameters of each function."""
    for prototype in PROTOTYPES:
        head, parameters = prototype[:-1].split("(")
        begin = head.index("kt_", head.rindex(" ") if "*" not in head else head.rindex("*"))
        yield head[begin:], ctype(head[:begin].strip()), [ctype(p) for p in _parameters(parameters)]


def callback(name: str) -> Any:
    """The ctypes function type of a callback."""
    for line in CALLBACKS:
        known, signature = line.split(" = ")
        if known == name:
            result, parameters = signature[:-1].split(" (")
            return ctypes.CFUNCTYPE(ctype(result), *map(ctype, _parameters(parameters)))
    raise KeyError(name)
