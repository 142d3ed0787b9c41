# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in another format of weights."""
from __future__ import annotations

import ctypes
from typing import Optional, Union

from . import _structs, _values
from ._handle import need
from .constants import DType
from .context import Context
from .model import Path


def convert(ctx: Context, source: Path, target: Path, *, to: Union[DType, str, None] = None,
            experts_only: Optional[bool] = None) -> None:
    """Writes the checkpoint in `source` into the folder `target` as "bf16" (default), "f32",
    "f8_e4m3", "i8" or "i4". An interrupted conversion goes on with the same call."""
    need(ctx, Context, "ctx")
    options = _values.options(
        _structs.kt_convert_options, experts_only=experts_only,
        to=None if to is None else _values.constant(DType, to, "to"))
    ctx._call("kt_convert", _values.text(source, "source"), _values.text(target, "target"),
              ctypes.byref(options))
