# SPDX-License-Identifier: Apache-2.0
"""Constants of libkt. Where a function takes one, its name will do, in any case: compute="f32"."""
from __future__ import annotations

import enum

#: Label of a token that takes no part in the loss.
IGNORE_LABEL = -100


class Status(enum.IntEnum):
    """What went wrong, in kt.Error.status. The numbers are those of the C interface."""

    OK = 0
    INVALID_ARGUMENT = -1
    OUT_OF_MEMORY = -2
    IO = -3
    FORMAT = -4
    UNSUPPORTED = -5
    NOT_FOUND = -6
    MISMATCH = -7
    CANCELLED = -8
    STATE = -9
    NUMERIC = -10
    INTERNAL = -11


class LogLevel(enum.IntEnum):
    """How important a line of the log is."""

    ERROR = 0
    WARNING = 1
    INFO = 2
    DEBUG = 3


class Isa(enum.IntFlag):
    """Instruction sets that Context(isa_mask=) can switch off."""

    AVX2 = 1 << 0
    AVX512 = 1 << 1
    AVX512_BF16 = 1 << 2
    AVX512_VNNI = 1 << 3
    AMX_BF16 = 1 << 4
    AMX_INT8 = 1 << 5
    AVX512_VBMI = 1 << 6


class DType(enum.IntEnum):
    """Element types of tensors in checkpoints."""

    F32 = 0
    F16 = 1
    BF16 = 2
    F64 = 3
    I64 = 4
    I32 = 5
    U8 = 6
    BOOL = 7
    F8_E4M3 = 8
    I8 = 9
    I4 = 10
    Q8_0 = 11
    Q4_0 = 12
    Q4_K = 13
    Q6_K = 14
    UNKNOWN = 255


class Compute(enum.IntEnum):
    """Arithmetic of linear layers; sums are float32 in both."""

    F32 = 0
    BF16 = 1


class ForwardMode(enum.IntEnum):
    """What Executor.forward is for."""

    EVAL = 0
    TRAIN = 1
    CUSTOM = 2


class Thinking(enum.IntEnum):
    """LLaMA-Factory's enable_thinking: true, false and null."""

    ON = 0
    OFF = 1
    EITHER = 2
