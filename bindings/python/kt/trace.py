# SPDX-License-Identifier: Apache-2.0
"""What ran when, and how busy it kept each device. May change from one release to the next."""
from __future__ import annotations

import ctypes
from typing import List, NamedTuple, Optional

from . import _structs, _values
from ._handle import Handle, need
from .context import Context
from .model import Path


class TraceRow(NamedTuple):
    """A line of the summary: a phase ("forward", "decode" ...), where resource is None; a resource
    in it, where operation is None; or an operation. seconds of a resource: while something ran on
    it."""

    phase: str
    resource: Optional[str]
    operation: Optional[str]
    count: int
    seconds: float
    bytes: float
    flops: float


class Trace(Handle):
    """Traces the calls of a context from now on. path: a file for ui.perfetto.dev, which finish
    writes, with the first max_events events; None = the summary alone."""

    def __init__(self, ctx: Context, path: Optional[Path] = None, *,
                 max_events: Optional[int] = None) -> None:
        need(ctx, Context, "ctx")
        options = _values.options(_structs.kt_trace_options,
                                  path=_values.optional_text(path, "path"), max_events=max_events)
        self._make(ctx._session, "kt_trace_create", ctx._open, ctypes.byref(options))

    def finish(self) -> List[TraceRow]:
        """Ends it, writes the file and returns the summary."""
        self._call("kt_trace_finish")
        return [self._row(i) for i in range(self._look("kt_trace_num_rows"))]

    def _row(self, index: int) -> TraceRow:
        row = _values.sized(_structs.kt_trace_row)
        self._call("kt_trace_get_row", index, ctypes.byref(row))
        made: TraceRow = _values.record(TraceRow, row)
        return made
