# SPDX-License-Identifier: Apache-2.0
"""The few calls of libkt that the scripts here need, through ctypes."""
import ctypes as C

import torch


class ModelOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("check_finite", C.c_int32), ("reserved", C.c_uint64 * 8)]


class ExecutorOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("compute", C.c_int), ("rule", C.c_void_p),
                ("experts_backend", C.c_char_p), ("logits_chunk", C.c_int32),
                ("reserved", C.c_uint64 * 8)]


class LoraOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("rank", C.c_int32), ("alpha", C.c_float),
                ("dropout", C.c_float), ("use_rslora", C.c_int32), ("target", C.c_char_p),
                ("target_experts", C.c_int32), ("seed", C.c_uint64), ("reserved", C.c_uint64 * 8)]


class LoraTensor(C.Structure):
    _fields_ = [("size", C.c_size_t), ("name", C.c_char_p), ("rows", C.c_int64),
                ("cols", C.c_int64), ("data", C.POINTER(C.c_float)),
                ("grad", C.POINTER(C.c_float)), ("has_grad", C.c_int32),
                ("reserved", C.c_uint64 * 4)]


class Library:
    """One context of the shared library at `path`; every failed call raises its sentence."""

    def __init__(self, path):
        self.lib = C.CDLL(path)
        self.lib.kt_last_error.restype = C.c_char_p
        self.lib.kt_lora_num_tensors.restype = C.c_size_t
        self.ctx = C.c_void_p()
        self.call("kt_context_create", None, C.byref(self.ctx))

    def call(self, name, *args):
        if getattr(self.lib, name)(*args) != 0:
            raise RuntimeError(f"{name}: {self.lib.kt_last_error(self.ctx).decode()}")

    def options(self, kind, name):
        options = kind()
        getattr(self.lib, name)(C.byref(options), C.c_size_t(C.sizeof(options)))
        return options

    def load_model(self, folder):
        model = C.c_void_p()
        self.call("kt_model_load", self.ctx, str(folder).encode(), None, C.byref(model))
        return model

    def load_lora(self, model, folder):
        lora = C.c_void_p()
        self.call("kt_lora_load", model, str(folder).encode(), C.byref(lora))
        return lora

    def create_lora(self, model, rank, use_rslora, experts):
        options, lora = self.options(LoraOptions, "kt_lora_options_init"), C.c_void_p()
        options.rank, options.use_rslora, options.target_experts = rank, use_rslora, experts
        self.call("kt_lora_create", model, C.byref(options), C.byref(lora))
        return lora

    def save_lora(self, lora, folder):
        self.call("kt_lora_save", lora, str(folder).encode())

    def tensors(self, lora):
        """Name -> tensor that shares the adapter's memory."""
        found = {}
        for i in range(self.lib.kt_lora_num_tensors(lora)):
            t = LoraTensor(size=C.sizeof(LoraTensor))
            self.call("kt_lora_get_tensor", lora, C.c_size_t(i), C.byref(t))
            flat = torch.frombuffer((C.c_float * (t.rows * t.cols)).from_address(
                C.addressof(t.data.contents)), dtype=torch.float32)
            found[t.name.decode()] = flat.view(t.rows, t.cols)
        return found

    def logits(self, model, lora, ids, vocab):
        """[len(ids), vocab] in float32 of one sequence; lora None for the model alone."""
        options = self.options(ExecutorOptions, "kt_executor_options_init")
        options.compute = 0
        executor, batch = C.c_void_p(), C.c_void_p()
        self.call("kt_executor_create", model, lora, C.byref(options), C.byref(executor))
        self.call("kt_batch_create", self.ctx, C.byref(batch))
        raw = (C.c_int32 * len(ids))(*ids)
        self.call("kt_batch_add", batch, raw, None, C.c_size_t(len(ids)))
        out = torch.empty(len(ids), vocab)
        self.call("kt_executor_logits", executor, batch,
                  C.cast(out.data_ptr(), C.POINTER(C.c_float)))
        self.lib.kt_batch_free(batch)
        self.lib.kt_executor_free(executor)
        return out
