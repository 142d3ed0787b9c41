# SPDX-License-Identifier: Apache-2.0
"""Generation token by token with a cache."""
from __future__ import annotations

import ctypes
from typing import Any, Iterator, Optional

from . import _structs, _values
from ._handle import Handle, need
from .arrays import Floats, copied
from .executor import Executor


class Generator(Handle):
    """Generates with an executor's model and adapter.

    temperature 0.95 (0 = greedy); top_p 0.7 (1 = off); top_k 50 (0 = off); repetition_penalty 1;
    seed 42; max_length: tokens the cache may hold, 0 = the model's max_position_embeddings;
    prefill_chunk: most prompt tokens in one pass. len() is the tokens in the context.
    """

    def __init__(self, executor: Executor, *, temperature: Optional[float] = None,
                 top_p: Optional[float] = None, top_k: Optional[int] = None,
                 repetition_penalty: Optional[float] = None, seed: Optional[int] = None,
                 max_length: Optional[int] = None, prefill_chunk: Optional[int] = None) -> None:
        need(executor, Executor, "executor")
        options = _values.options(
            _structs.kt_generator_options, temperature=temperature, top_p=top_p, top_k=top_k,
            repetition_penalty=repetition_penalty, seed=seed, max_length=max_length,
            prefill_chunk=prefill_chunk)
        self._vocab_size = executor._vocab_size
        self._make(executor._session, "kt_generator_create", executor._open,
                   ctypes.byref(options))

    def reset(self) -> None:
        """Forgets the context. Random numbers go on."""
        self._call("kt_generator_reset")

    def prompt(self, ids: Any) -> None:
        """Makes the context exactly these ids. What the cache holds of that prefix is kept, so a
        chat passes its whole history each turn."""
        tokens = _values.int32(ids, "ids")
        self._call("kt_generator_prompt", _values.address(tokens), len(tokens))

    def next(self) -> int:
        """Samples the next token and appends it to the context."""
        token = ctypes.c_int32()
        self._call("kt_generator_next", ctypes.byref(token))
        return token.value

    def generate(self, ids: Any, n: int, *, stop: Any = ()) -> Iterator[int]:
        """Up to n tokens after the prompt `ids`, each as it is drawn; ends before one of the ids in
        `stop`. The prompt is computed at once, a token when it is asked for."""
        count = _values.integer(n, ctypes.c_size_t, "n")
        ends = frozenset(_values.int32(stop, "stop"))
        self.prompt(ids)
        return self._tokens(count, ends)

    def _tokens(self, count: int, ends: Any) -> Iterator[int]:
        for _ in range(count):
            token = self.next()
            if token in ends:
                return
            yield token

    @property
    def logits(self) -> Optional[Floats]:
        """A copy of the logits of the latest position, float32 [vocab_size]; None before a
        prompt."""
        with self._held() as native:
            address = self._session.look("kt_generator_logits", native)
            return copied(address, (self._vocab_size,)) if address else None

    def __len__(self) -> int:
        return int(self._look("kt_generator_length"))

    def __bool__(self) -> bool:
        return True
