# SPDX-License-Identifier: Apache-2.0
"""The sequences of one optimizer step, packed without padding."""
from __future__ import annotations

import array
import ctypes
from typing import Any, Optional

from . import _values
from ._handle import Handle, need
from .context import Context


class Batch(Handle):
    """Sequences of token ids and labels, which are copied. len() is the number of sequences."""

    def __init__(self, ctx: Context) -> None:
        need(ctx, Context, "ctx")
        self._make(ctx._session, "kt_batch_create", ctx._open)

    def add(self, ids: Any, labels: Optional[Any] = None) -> None:
        """Appends a sequence: token ids [length], and labels [length], not shifted: the token that
        each position should have been (its own id as a rule), or IGNORE_LABEL. None = all ignored.
        Each is a sequence of integers, an array or a tensor."""
        tokens = _values.int32(ids, "ids")
        targets = None if labels is None else _values.int32(labels, "labels")
        if targets is not None and len(targets) != len(tokens):
            raise ValueError(f"{len(tokens)} ids have {len(targets)} labels; they must be as many")
        self._call("kt_batch_add", _values.address(tokens),
                   None if targets is None else _values.address(targets), len(tokens))

    def add_padding(self, pad_id: int, count: int) -> None:
        """Names tokens that a padded batch would hold after the latest sequence. They change no
        loss, but which routed experts have a gradient."""
        self._call("kt_batch_add_padding", _values.integer(pad_id, ctypes.c_int32, "pad_id"),
                   _values.integer(count, ctypes.c_size_t, "count"))

    def clear(self) -> None:
        """Removes all sequences."""
        self._call("kt_batch_clear")

    @property
    def num_sequences(self) -> int:
        """Sequences added."""
        return int(self._look("kt_batch_num_sequences"))

    @property
    def num_tokens(self) -> int:
        """Their tokens, without padding."""
        return int(self._look("kt_batch_num_tokens"))

    @property
    def num_targets(self) -> int:
        """Labels that are not ignored: the divisor of the loss."""
        return int(self._look("kt_batch_num_targets"))

    def __len__(self) -> int:
        return self.num_sequences

    def _copied(self, name: str, of: str, more: int = 0) -> "array.array[int]":
        with self._held() as native:
            count = self._session.look(f"kt_batch_num_{of}", native) + more
            return _values.copied("i", self._session.look(f"kt_batch_{name}", native), count)

    @property
    def input_ids(self) -> "array.array[int]":
        """A copy of the ids of all sequences, int32 [num_tokens]."""
        return self._copied("input_ids", "tokens")

    @property
    def labels(self) -> "array.array[int]":
        """A copy of their labels, int32 [num_tokens]."""
        return self._copied("labels", "tokens")

    @property
    def cu_seqlens(self) -> "array.array[int]":
        """Where each sequence begins, and the number of tokens: int32 [num_sequences + 1]."""
        return self._copied("cu_seqlens", "sequences", 1)
