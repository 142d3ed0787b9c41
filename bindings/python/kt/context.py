# SPDX-License-Identifier: Apache-2.0
"""The context: threads, callbacks, memory. Every other object is made from one."""
from __future__ import annotations

import ctypes
from typing import Any, Callable, Optional

from . import _structs, _values
from ._callbacks import State
from ._handle import Handle, Native, Session
from ._library import lib
from .constants import LogLevel

Log = Callable[[LogLevel, str], Any]
Progress = Callable[[str, int, int], Any]
Cancel = Callable[[], Any]
_KINDS = ("log", "progress", "cancel")


class Context(Handle):
    """Owns the thread pool and the callbacks.

    num_threads: worker threads, the calling one among them; 0 = one for each physical core.
    isa_mask: Isa bits that must not be used. memory_limit: bytes of host memory for what libkt
    counts (0 = no limit). pin_threads: bind threads to cores or NUMA nodes.

    log(level, message), progress(what, done, total) and cancel() are called on the thread that
    called libkt, in the middle of that call. When cancel() answers something true, the running call
    raises kt.Error with Status.CANCELLED. What a callback raises cancels the call, and is raised by
    it. Callbacks may use other contexts; of this one only what looks, close() and cancel().

    Closing a context leaves its threads to the objects that were made from it.
    """

    def __init__(self, num_threads: Optional[int] = None, *, log: Optional[Log] = None,
                 progress: Optional[Progress] = None, cancel: Optional[Cancel] = None,
                 isa_mask: Optional[int] = None, memory_limit: Optional[int] = None,
                 pin_threads: Optional[bool] = None) -> None:
        options = _values.options(_structs.kt_context_options, num_threads=num_threads,
                                  isa_mask=isa_mask, memory_limit=memory_limit,
                                  pin_threads=pin_threads)
        state = State()
        self._state, self._thunks = state, {kind: state.thunk(kind) for kind in _KINDS}
        for kind, callback in zip(_KINDS, (log, progress, cancel)):
            self._set(kind, callback)
            if callback or kind == "cancel":  # which is where Ctrl-C is noticed
                setattr(options, kind, ctypes.cast(self._thunks[kind], ctypes.c_void_p))
        native = Native(lib.kt_context_free, self._thunks)
        session = Session(native, state.raised)
        session.call("kt_context_create", ctypes.byref(options), ctypes.byref(native.pointer))
        state.pointer = native.pointer.value
        self._session, self._native = session, native

    def _set(self, kind: str, callback: Any) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"{kind} must be callable, not {type(callback).__name__}")
        self._state.callbacks[kind] = callback

    def _replace(self, kind: str, callback: Any) -> None:
        self._open
        self._set(kind, callback)
        self._call(f"kt_context_set_{kind}", self._thunks[kind] if callback else None, None)

    def set_log(self, log: Optional[Log]) -> None:
        """Replaces the log callback; None = no log."""
        self._replace("log", log)

    def set_progress(self, progress: Optional[Progress]) -> None:
        """Replaces the progress callback; None = none."""
        self._replace("progress", progress)

    def set_cancel(self, cancel: Optional[Cancel]) -> None:
        """Replaces the cancel callback; None = never cancel."""
        self._open
        self._set("cancel", cancel)

    def cancel(self) -> None:
        """Makes the running call, or the next, raise Status.CANCELLED. From any thread."""
        lib.kt_context_cancel(self._open.pointer)

    def clear_cancel(self) -> None:
        """Takes back a request that no call has answered."""
        lib.kt_context_clear_cancel(self._open.pointer)

    @property
    def num_threads(self) -> int:
        """Worker threads in use."""
        return int(self._look("kt_context_num_threads"))

    @property
    def cpu_description(self) -> str:
        """One line: cores, NUMA nodes, instruction sets in use."""
        return str(self._look("kt_context_cpu_description").decode())

    @property
    def memory_used(self) -> int:
        """Bytes of host memory that count for memory_limit. From any thread."""
        return int(lib.kt_context_memory_used(self._open.pointer))

    @property
    def memory_peak(self) -> int:
        """The most there ever were. From any thread."""
        return int(lib.kt_context_memory_peak(self._open.pointer))

    @property
    def host_memory(self) -> int:
        """Bytes of host memory that this process may use."""
        return int(self._look("kt_context_host_memory"))
