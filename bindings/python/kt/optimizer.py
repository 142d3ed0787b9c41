# SPDX-License-Identifier: Apache-2.0
"""AdamW, learning rates and the order of examples."""
from __future__ import annotations

import array
import ctypes
from typing import Optional

from . import _structs, _values
from ._handle import Handle, need
from .context import Context
from .lora import Lora
from .model import Path


class Optimizer(Handle):
    """AdamW of an adapter, as torch.optim.AdamW computes it; a matrix without a gradient in a step
    is skipped.

    beta1 0.9, beta2 0.999, epsilon 1e-8, weight_decay 0; max_grad_norm 1.0: the global norm to clip
    to, 0 = no clipping.
    """

    def __init__(self, lora: Lora, *, beta1: Optional[float] = None, beta2: Optional[float] = None,
                 epsilon: Optional[float] = None, weight_decay: Optional[float] = None,
                 max_grad_norm: Optional[float] = None) -> None:
        need(lora, Lora, "lora")
        options = _values.options(
            _structs.kt_optimizer_options, beta1=beta1, beta2=beta2, epsilon=epsilon,
            weight_decay=weight_decay, max_grad_norm=max_grad_norm)
        self._make(lora._session, "kt_optimizer_create", lora._open, ctypes.byref(options))

    def step(self, learning_rate: float) -> float:
        """Clips, updates, clears the gradients. Gives the norm before clipping. Status.NUMERIC when
        it is not finite; nothing is updated then."""
        norm = ctypes.c_double()
        self._call("kt_optimizer_step", _values.real(learning_rate, "learning_rate"),
                   ctypes.byref(norm))
        return norm.value

    def save(self, file: Path) -> None:
        """Writes moments and counters."""
        self._call("kt_optimizer_save", _values.text(file, "file"))

    def load(self, file: Path) -> None:
        """Reads them back bit for bit."""
        self._call("kt_optimizer_load", _values.text(file, "file"))


def schedule_rate(ctx: Context, step: int, *, type: Optional[str] = None,
                  learning_rate: Optional[float] = None, warmup_steps: Optional[int] = None,
                  total_steps: Optional[int] = None, num_cycles: Optional[float] = None,
                  power: Optional[float] = None, lr_end: Optional[float] = None) -> float:
    """Learning rate of optimizer step `step` (0-based) of one of Hugging Face's schedules: linear
    (default), cosine, constant, constant_with_warmup, cosine_with_restarts, polynomial,
    inverse_sqrt, cosine_with_min_lr."""
    need(ctx, Context, "ctx")
    schedule = _values.options(
        _structs.kt_schedule, type=type, learning_rate=learning_rate, warmup_steps=warmup_steps,
        total_steps=total_steps, num_cycles=num_cycles, power=power, lr_end=lr_end)
    rate = ctypes.c_double()
    ctx._call("kt_schedule_rate", ctypes.byref(schedule),
              _values.integer(step, ctypes.c_uint64, "step"), ctypes.byref(rate))
    return rate.value


def random_permutation(ctx: Context, seed: int, n: int) -> "array.array[int]":
    """The order in which an epoch visits n examples, int64: torch.randperm(n) of a CPU generator
    seeded with seed."""
    need(ctx, Context, "ctx")
    _values.integer(n, ctypes.c_size_t, "n")
    order = array.array("q", bytes(8 * n))
    ctx._call("kt_random_permutation", _values.integer(seed, ctypes.c_uint64, "seed"), n,
              _values.address(order))
    return order
