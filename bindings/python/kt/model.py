# SPDX-License-Identifier: Apache-2.0
"""A checkpoint, mapped and never copied."""
from __future__ import annotations

import ctypes
import os
from typing import List, NamedTuple, Optional, Tuple, Union

from . import _structs, _values
from ._handle import Handle, need
from .constants import DType
from .context import Context

Path = Union[str, "os.PathLike[str]"]


class ModelInfo(NamedTuple):
    """What a model is. Counts of experts are 0 in dense models; ids are None when not given."""

    architecture: str
    path: str
    num_hidden_layers: int
    num_dense_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    max_position_embeddings: int
    bos_token_id: Optional[int]
    eos_token_id: Optional[int]
    num_parameters: int
    num_active_parameters: int
    num_bytes: int
    num_skipped_bytes: int


class TensorInfo(NamedTuple):
    """A tensor of the checkpoint. used: 0 = skipped knowingly, 2 = scales of another tensor."""

    name: str
    file: str
    dtype: DType
    shape: Tuple[int, ...]
    num_bytes: int
    used: int


def token_id(number: int) -> Optional[int]:
    return None if number < 0 else number


class Model(Handle):
    """A checkpoint folder in the Hugging Face layout, or a GGUF model.

    check_finite: look for NaN and infinity at load: 1 (default) = in all tensors that are used if
    they are 1 GiB or less together, else in the small ones; 2 = in all; 0 = nowhere.
    """

    def __init__(self, ctx: Context, path: Path, *, check_finite: Optional[int] = None) -> None:
        need(ctx, Context, "ctx")
        options = _values.options(_structs.kt_model_options, check_finite=check_finite)
        self._make(ctx._session, "kt_model_load", ctx._open, _values.text(path, "path"),
                   ctypes.byref(options))

    @property
    def info(self) -> ModelInfo:
        """Architecture, sizes and counts."""
        info = _values.sized(_structs.kt_model_info)
        self._call("kt_model_get_info", ctypes.byref(info))
        made: ModelInfo = _values.record(ModelInfo, info, bos_token_id=token_id(info.bos_token_id),
                                         eos_token_id=token_id(info.eos_token_id))
        return made

    def check_finite(self) -> None:
        """Reads every weight that is used; Status.NUMERIC names the first that is not finite."""
        self._call("kt_model_check_finite")

    def tensors(self) -> List[TensorInfo]:
        """The checkpoint's tensors in the order of their names."""
        return [self._tensor(i) for i in range(self._look("kt_model_num_tensors"))]

    def _tensor(self, index: int) -> TensorInfo:
        info = _values.sized(_structs.kt_tensor_info)
        self._call("kt_model_get_tensor", index, ctypes.byref(info))
        made: TensorInfo = _values.record(TensorInfo, info, dtype=DType(info.dtype),
                                          shape=tuple(info.shape[:info.ndim]))
        return made

    def linears(self) -> List[str]:
        """Module paths of the linear layers that LoRA can be attached to."""
        return [self._look("kt_model_linear_name", i).decode()
                for i in range(self._look("kt_model_num_linears"))]
