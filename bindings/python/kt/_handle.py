# SPDX-License-Identifier: Apache-2.0
"""What all handles are made of.

A Native owns a handle of C and frees it when the last reference goes. Python's references are the
lifetimes: a Handle has one until it is closed, a running call has one to each of its arguments, and
a view of a matrix has one to its adapter. A Session is what the handles of a context share.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import Any, Dict, Iterator, Optional, Type, TypeVar

from ._library import lib
from .constants import Status
from .errors import Error

H = TypeVar("H", bound="Handle")


class Native:
    """A pointer of C and the function that frees it. `keep` lives at least as long."""

    def __init__(self, free: Any, keep: Any = None) -> None:
        self.pointer = ctypes.c_void_p()
        self._free = free
        self._keep = keep
        self._pid = os.getpid()

    def __del__(self, getpid: Any = os.getpid) -> None:
        # The child of a fork has none of its parent's threads and must not free.
        if self.pointer and self._pid == getpid():
            self._free(self.pointer)


class Session:
    """The context of C, what its callbacks raised, and the mark of the thread that is inside."""

    def __init__(self, native: Native, raised: Dict[int, BaseException]) -> None:
        self.native = native
        self._raised = raised  # by thread
        self._inside = threading.RLock()
        self._pid = os.getpid()

    def __enter__(self) -> None:
        if os.getpid() != self._pid:
            raise Error(Status.STATE, "this handle was made before fork(); the child must make a "
                                      "context of its own")
        # libkt's own guard leaves out functions that only look; this one does not.
        if not self._inside.acquire(blocking=False):
            raise Error(Status.STATE, "another thread is in a call of this context; a context and "
                                      "its handles are for one thread at a time")

    def __exit__(self, *_: Any) -> None:
        self._inside.release()

    def look(self, name: str, *args: Any) -> Any:
        """Calls a function that cannot fail."""
        with self:
            return getattr(lib, name)(*map(_argument, args))

    def call(self, name: str, *args: Any) -> None:
        """Calls a function that returns a status. What a callback raised is raised here."""
        with self:
            self.check(getattr(lib, name)(*map(_argument, args)))

    def check(self, status: int) -> None:
        raised = self._raised.pop(threading.get_ident(), None)
        if raised is not None:
            lib.kt_context_clear_cancel(self.native.pointer)
            try:
                raise raised
            finally:
                del raised
        if status != Status.OK:
            sentence = lib.kt_last_error(self.native.pointer)
            raise Error(status, sentence.decode("utf-8", "replace"))


def _argument(value: Any) -> Any:
    return value.pointer if isinstance(value, Native) else value


class Handle:
    """An object of libkt.

    close() lets go of it and is harmless when repeated; `with` closes at the end of its block, and
    the garbage collector closes what was forgotten. Any other use of a closed object raises
    kt.Error with Status.STATE. Objects may be closed in any order: what others still need lives on
    inside libkt until the last of them is closed; a context's threads too.

    A context and all objects made from it are for one thread at a time: a call while another
    thread is in one raises kt.Error with Status.STATE, and so does a call from a callback, but for
    those that only look. close() and Context.cancel() may be called from anywhere. Long calls
    release Python's lock, and Ctrl-C ends them.
    """

    _native: Optional[Native] = None
    _session: Session

    def _make(self, session: Session, name: str, *args: Any) -> None:
        """Calls the function `name` with these arguments and the place of the new handle."""
        kind = name.split("_")[1]
        self._adopt(session, kind, name, *args)

    def _adopt(self, session: Session, kind: str, name: str, *args: Any) -> None:
        native = Native(getattr(lib, f"kt_{kind}_free"), session.native)
        session.call(name, *args, ctypes.byref(native.pointer))
        self._session, self._native = session, native

    @property
    def _open(self) -> Native:
        native = self._native
        if native is None:
            raise Error(Status.STATE, f"this {type(self).__name__} is closed")
        return native

    def _call(self, name: str, *args: Any) -> None:
        native = self._open
        self._session.call(name, native, *args)

    def _look(self, name: str, *args: Any) -> Any:
        native = self._open
        return self._session.look(name, native, *args)

    @contextlib.contextmanager
    def _held(self) -> Iterator[Native]:
        """Around several calls between which no other thread may change the object."""
        native = self._open
        with self._session:
            yield native

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._native is None

    def close(self) -> None:
        """Lets go of the object."""
        self._native = None

    def __enter__(self: H) -> H:
        self._open
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kt.{type(self).__name__}{' (closed)' if self.closed else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be pickled")


def need(value: Any, kind: Type[H], what: str) -> H:
    """The handle, if it is of that kind and open."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be a kt.{kind.__name__}, not {type(value).__name__}")
    value._open
    return value
