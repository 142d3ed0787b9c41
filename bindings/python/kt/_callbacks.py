# SPDX-License-Identifier: Apache-2.0
"""Functions of C that call Python's, and keep what these raise until the call of libkt returns."""
from __future__ import annotations

import functools
import threading
from types import TracebackType
from typing import Any, Dict, Generator, List, Optional

from . import _abi
from ._library import lib
from .constants import LogLevel


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _next(trace: Optional[TracebackType]) -> Optional[TracebackType]:
    return trace.tb_next if trace else None


def _listener(count: int, state: "State", kind: str) -> Generator[int, Any, None]:
    """Is sent the `count` arguments of a call from C one after another, the first of them NULL.

    Why no plain function: Python runs the handlers of signals as the body of a function begins,
    and what they raise there (KeyboardInterrupt) ctypes can only print. A generator goes on inside
    its `try`.
    """
    arguments: List[Any] = []
    answer = 0
    while True:
        try:
            while True:
                value = yield answer
                if value is None:
                    arguments.clear()
                arguments.append(value)
                if len(arguments) == count:
                    answer = state.answer(kind, *map(_decoded, arguments[1:]))
        except GeneratorExit:
            return
        except BaseException as error:
            # Without the listener's own frame, which traceback.clear_frames() would end.
            answer = state.fail(error.with_traceback(_next(error.__traceback__)))


class State:
    """The host's callbacks, and what they raised, by thread. Holds no handle."""

    def __init__(self) -> None:
        self.callbacks: Dict[str, Any] = {}
        self.raised: Dict[int, BaseException] = {}
        self.pointer: Any = None

    def answer(self, kind: str, *arguments: Any) -> int:
        callback = self.callbacks.get(kind)
        if threading.get_ident() in self.raised:
            return 1
        try:
            if kind == "log":
                arguments = (LogLevel(arguments[0]), *arguments[1:])
            result = callback(*arguments) if callback else None
            return 1 if kind == "cancel" and result else 0
        except BaseException as error:
            return self.fail(error)

    def fail(self, error: BaseException) -> int:
        self.raised.setdefault(threading.get_ident(), error)
        lib.kt_context_cancel(self.pointer)
        return 1

    def thunk(self, kind: str) -> Any:
        """The function of C for a kind of callback."""
        signature = _abi.callback(f"kt_{kind}_callback")
        count = len(signature._argtypes_)
        listener = _listener(count, self, kind)
        next(listener)
        # max() sends all arguments, and runs no Python code before the listener's.
        return signature(listener.send if count == 1 else functools.partial(max, key=listener.send))
