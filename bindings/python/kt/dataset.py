# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning datasets, with the ids and labels of LLaMA-Factory 0.9.4."""
from __future__ import annotations

import array
import ctypes
from typing import Iterator, NamedTuple, Optional, Union

from . import _structs, _values
from ._handle import Handle, need
from .constants import Thinking
from .context import Context
from .model import Path
from .tokenizer import Tokenizer


class Example(NamedTuple):
    """Copies of an example's arrays, int32 [length]; labels are not shifted."""

    input_ids: "array.array[int]"
    labels: "array.array[int]"


class Dataset(Handle):
    """The examples of one or several names in dataset_info.json; len(), [index] and iteration.

    dataset: comma-separated names. dataset_dir: the folder of dataset_info.json ("data").
    template_name: one of template_names(). cutoff_len 2048; max_samples of each dataset, 0 = all;
    name and author fill {{name}} and {{author}}. The tokenizer may be closed afterwards.
    """

    def __init__(self, ctx: Context, tokenizer: Tokenizer, *, dataset: str, template_name: str,
                 dataset_dir: Optional[Path] = None, cutoff_len: Optional[int] = None,
                 max_samples: Optional[int] = None, train_on_prompt: Optional[bool] = None,
                 mask_history: Optional[bool] = None, default_system: Optional[str] = None,
                 name: Optional[str] = None, author: Optional[str] = None,
                 thinking: Union[Thinking, str, None] = None) -> None:
        need(ctx, Context, "ctx")
        need(tokenizer, Tokenizer, "tokenizer")
        number = None if thinking is None else _values.constant(Thinking, thinking, "thinking")
        options = _values.options(
            _structs.kt_dataset_options, dataset=dataset, template_name=template_name,
            dataset_dir=dataset_dir, cutoff_len=cutoff_len, max_samples=max_samples,
            train_on_prompt=train_on_prompt, mask_history=mask_history,
            default_system=default_system, name=name, author=author, thinking=number)
        self._make(ctx._session, "kt_dataset_load", ctx._open, tokenizer._open,
                   ctypes.byref(options))

    def __len__(self) -> int:
        return int(self._look("kt_dataset_num_examples"))

    def __getitem__(self, index: int) -> Example:
        number = _values.integer(index, ctypes.c_int64, "index")
        with self._held() as native:
            count = self._session.look("kt_dataset_num_examples", native)
            if not -count <= number < count:
                raise IndexError(f"there is no example {number}; the dataset has {count}")
            example = _values.sized(_structs.kt_example)
            self._session.call("kt_dataset_get", native, number % count, ctypes.byref(example))
            return Example(_values.copied("i", example.input_ids, example.length),
                           _values.copied("i", example.labels, example.length))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def split(self, val_size: float, seed: int = 42) -> "Dataset":
        """Takes the evaluation part out into a new dataset: a fraction if val_size < 1, else that
        number of examples, as LLaMA-Factory splits with this seed."""
        self._open
        made = type(self).__new__(type(self))
        made._adopt(self._session, "dataset", "kt_dataset_split", self._open,
                    _values.real(val_size, "val_size"),
                    _values.integer(seed, ctypes.c_uint64, "seed"))
        return made
