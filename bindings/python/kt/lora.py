# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter: float32 matrices and their gradients."""
from __future__ import annotations

import ctypes
from typing import Any, Dict, Optional, Tuple

from . import _structs, _values
from ._handle import Handle, Native, Session, need
from .arrays import Floats, view
from .model import Model, Path


class LoraTensor:
    """One matrix of an adapter: A [rank, in_features] or B [out_features, rank], float32.

    It keeps the memory of its adapter, also after the adapter is closed.
    """

    def __init__(self, session: Session, native: Native, index: int) -> None:
        self._session, self._native, self._index = session, native, index
        tensor = self._get()
        #: as in PEFT's file: "base_model.model.model.layers.0...lora_A.weight"
        self.name: str = tensor.name.decode()
        self.shape: Tuple[int, int] = (tensor.rows, tensor.cols)
        self._addresses = tensor.data, tensor.grad

    def _get(self) -> Any:
        tensor = _values.sized(_structs.kt_lora_tensor)
        self._session.call("kt_lora_get_tensor", self._native, self._index, ctypes.byref(tensor))
        return tensor

    @property
    def data(self) -> Floats:
        """The values, libkt's own memory: read and write between calls. Then Lora.touch()."""
        made: Floats = view(self._addresses[0], self.shape, self._native)
        return made

    @property
    def grad(self) -> Floats:
        """The gradients, libkt's own memory: Executor.backward adds to them. After writing them,
        has_grad = True."""
        made: Floats = view(self._addresses[1], self.shape, self._native)
        return made

    def numpy(self) -> Any:
        """The values as a numpy array that shares the memory. Needs numpy."""
        return self.data.numpy()

    @property
    def has_grad(self) -> bool:
        """Whether a token reached the matrix since the gradients were last cleared. To set it marks
        both matrices of the linear: True has the optimizer step them, False clears both
        gradients."""
        return bool(self._get().has_grad)

    @has_grad.setter
    def has_grad(self, state: bool) -> None:
        self._session.call("kt_lora_set_grad_state", self._native, self._index, int(bool(state)))

    def __repr__(self) -> str:
        return f"<kt.LoraTensor {self.name} {list(self.shape)}>"


class Lora(Handle):
    """A new adapter: A is Kaiming-uniform, B zero.

    rank 8; alpha 2 x rank; dropout 0; target "all", or a comma-separated list of module paths or
    their ends; target_experts: whether "all" has the routed experts too (no); seed 42.
    Lora.load(model, path) reads one from a PEFT folder.
    """

    def __init__(self, model: Model, *, rank: Optional[int] = None, alpha: Optional[float] = None,
                 dropout: Optional[float] = None, use_rslora: Optional[bool] = None,
                 target: Optional[str] = None, target_experts: Optional[bool] = None,
                 seed: Optional[int] = None) -> None:
        need(model, Model, "model")
        options = _values.options(
            _structs.kt_lora_options, rank=rank, alpha=alpha, dropout=dropout,
            use_rslora=use_rslora, target=target, target_experts=target_experts, seed=seed)
        self._make(model._session, "kt_lora_create", model._open, ctypes.byref(options))

    @classmethod
    def load(cls, model: Model, path: Path) -> "Lora":
        """The adapter in a PEFT folder."""
        need(model, Model, "model")
        self = cls.__new__(cls)
        self._make(model._session, "kt_lora_load", model._open, _values.text(path, "path"))
        return self

    def save(self, path: Path) -> None:
        """Writes a PEFT folder."""
        self._call("kt_lora_save", _values.text(path, "path"))

    def tensors(self) -> Dict[str, LoraTensor]:
        """The matrices by name, in the adapter's order."""
        native = self._open
        count = self._look("kt_lora_num_tensors")
        tensors = (LoraTensor(self._session, native, i) for i in range(count))
        return {tensor.name: tensor for tensor in tensors}

    @property
    def num_parameters(self) -> int:
        """Numbers in all matrices together."""
        return int(self._look("kt_lora_num_parameters"))

    def zero_grad(self) -> None:
        """Clears all gradients and has_grad marks."""
        self._call("kt_lora_zero_grad")

    def touch(self) -> None:
        """Says that matrices were written, so that nothing kept of old values is used again."""
        self._call("kt_lora_touch")

    def set_seed(self, seed: int) -> None:
        """Sets the seed of dropout; a loaded adapter has 42."""
        self._call("kt_lora_set_seed", _values.integer(seed, ctypes.c_uint64, "seed"))
