# SPDX-License-Identifier: Apache-2.0
"""libkt's structs. tests/python/test_abi.py compares their layout with the headers.

A Python class of struct kt_x is named kt_x; `reserved` stays zero.
"""
import ctypes
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_ubyte, c_uint32
from ctypes import c_uint64, c_void_p
from typing import Any


def _struct(name: str, *fields: Any, reserved: int) -> Any:
    """A struct whose first field is its size, and whose last ones are reserved."""
    whole = [("size", c_size_t), *fields, ("reserved", c_uint64 * reserved)]
    return type(name, (ctypes.Structure,), {"_fields_": whole, "__module__": __name__})


kt_context_options = _struct(
    "kt_context_options", ("num_threads", c_int32), ("isa_mask", c_uint32), ("log", c_void_p),
    ("progress", c_void_p), ("cancel", c_void_p), ("user", c_void_p), ("memory_limit", c_uint64),
    ("pin_threads", c_int32), ("alloc", c_void_p), ("free", c_void_p), ("alloc_user", c_void_p),
    reserved=4)

kt_model_options = _struct("kt_model_options", ("check_finite", c_int32), reserved=8)

kt_model_info = _struct(
    "kt_model_info", ("architecture", c_char_p), ("path", c_char_p),
    ("num_hidden_layers", c_int32), ("num_dense_layers", c_int32), ("hidden_size", c_int32),
    ("vocab_size", c_int32), ("num_attention_heads", c_int32), ("n_routed_experts", c_int32),
    ("num_experts_per_tok", c_int32), ("n_shared_experts", c_int32),
    ("max_position_embeddings", c_int32), ("bos_token_id", c_int32), ("eos_token_id", c_int32),
    ("num_parameters", c_uint64), ("num_active_parameters", c_uint64), ("num_bytes", c_uint64),
    ("num_skipped_bytes", c_uint64), reserved=8)

kt_tensor_info = _struct(
    "kt_tensor_info", ("name", c_char_p), ("file", c_char_p), ("dtype", c_int32),
    ("ndim", c_int32), ("shape", c_int64 * 8), ("num_bytes", c_uint64), ("used", c_int32),
    reserved=4)

kt_convert_options = _struct("kt_convert_options", ("to", c_int32), ("experts_only", c_int32),
                             reserved=8)

kt_lora_options = _struct(
    "kt_lora_options", ("rank", c_int32), ("alpha", c_float), ("dropout", c_float),
    ("use_rslora", c_int32), ("target", c_char_p), ("target_experts", c_int32),
    ("seed", c_uint64), reserved=8)

kt_lora_tensor = _struct(
    "kt_lora_tensor", ("name", c_char_p), ("rows", c_int64), ("cols", c_int64),
    ("data", c_void_p), ("grad", c_void_p), ("has_grad", c_int32), reserved=4)

kt_executor_options = _struct(
    "kt_executor_options", ("compute", c_int32), ("rule", c_void_p),
    ("experts_backend", c_char_p), ("logits_chunk", c_int32), ("device_memory", c_uint64),
    reserved=7)

kt_loss = _struct("kt_loss", ("loss", c_double), ("loss_sum", c_double),
                  ("num_targets", c_uint64), reserved=4)

kt_plan_options = _struct("kt_plan_options", ("num_tokens", c_size_t),
                          ("max_sequence", c_size_t), ("mode", c_int32), reserved=8)

kt_device_plan = _struct(
    "kt_device_plan", ("name", c_char_p), ("weights", c_uint64), ("supplied", c_uint64),
    ("adapter", c_uint64), ("layer_inputs", c_uint64), ("activations", c_uint64),
    ("scratch", c_uint64), ("feed", c_uint64), ("total_allocated", c_uint64),
    ("flops", c_double), ("bytes", c_double), ("seconds", c_double), reserved=8)

kt_trace_options = _struct("kt_trace_options", ("path", c_char_p), ("max_events", c_uint64),
                           reserved=4)

kt_trace_row = _struct(
    "kt_trace_row", ("phase", c_char_p), ("resource", c_char_p), ("operation", c_char_p),
    ("count", c_uint64), ("seconds", c_double), ("bytes", c_double), ("flops", c_double),
    reserved=4)

kt_generator_options = _struct(
    "kt_generator_options", ("temperature", c_float), ("top_p", c_float), ("top_k", c_int32),
    ("repetition_penalty", c_float), ("seed", c_uint64), ("max_length", c_int32),
    ("prefill_chunk", c_int32), reserved=8)

kt_optimizer_options = _struct(
    "kt_optimizer_options", ("beta1", c_double), ("beta2", c_double), ("epsilon", c_double),
    ("weight_decay", c_double), ("max_grad_norm", c_double), reserved=8)

kt_schedule = _struct(
    "kt_schedule", ("type", c_char_p), ("learning_rate", c_double), ("warmup_steps", c_uint64),
    ("total_steps", c_uint64), ("num_cycles", c_double), ("power", c_double),
    ("lr_end", c_double), reserved=8)

kt_decode_state = _struct("kt_decode_state", ("pending", c_ubyte * 4), ("num_pending", c_int32),
                          reserved=2)

kt_message = _struct("kt_message", ("role", c_char_p), ("content", c_char_p), reserved=4)

kt_dataset_options = _struct(
    "kt_dataset_options", ("dataset_dir", c_char_p), ("dataset", c_char_p),
    ("template_name", c_char_p), ("cutoff_len", c_int32), ("max_samples", c_int64),
    ("train_on_prompt", c_int32), ("mask_history", c_int32), ("default_system", c_char_p),
    ("name", c_char_p), ("author", c_char_p), ("thinking", c_int32), reserved=7)

kt_example = _struct("kt_example", ("input_ids", c_void_p), ("labels", c_void_p),
                     ("length", c_size_t), reserved=4)
