# SPDX-License-Identifier: Apache-2.0
"""What a step takes of each device, before it is run. May change from one release to the next."""
from __future__ import annotations

import ctypes
from typing import List, NamedTuple, Optional, Union

from . import _structs, _values
from ._handle import Handle, need
from .constants import ForwardMode
from .executor import Executor


class DevicePlan(NamedTuple):
    """Bytes and work of a device; name is None for the total. weights are mapped, not allocated;
    total_allocated is all but them. seconds is rough: to compare plans by."""

    name: Optional[str]
    weights: int
    supplied: int
    adapter: int
    layer_inputs: int
    activations: int
    scratch: int
    feed: int
    total_allocated: int
    flops: float
    bytes: float
    seconds: float


class Plan(Handle):
    """A plan of a step of num_tokens tokens, the longest sequence of which has max_sequence (all of
    them, unless given)."""

    def __init__(self, executor: Executor, num_tokens: int, *, max_sequence: Optional[int] = None,
                 mode: Union[ForwardMode, str, None] = None) -> None:
        need(executor, Executor, "executor")
        options = _values.options(
            _structs.kt_plan_options, num_tokens=num_tokens, max_sequence=max_sequence,
            mode=None if mode is None else _values.constant(ForwardMode, mode, "mode"))
        self._make(executor._session, "kt_plan_create", executor._open, ctypes.byref(options))

    def _plan(self, name: str, *args: int) -> DevicePlan:
        plan = _values.sized(_structs.kt_device_plan)
        self._call(name, *args, ctypes.byref(plan))
        made: DevicePlan = _values.record(DevicePlan, plan)
        return made

    def devices(self) -> List[DevicePlan]:
        """One for each device, the host ("cpu") among them."""
        return [self._plan("kt_plan_get_device", i)
                for i in range(self._look("kt_plan_num_devices"))]

    def total(self) -> DevicePlan:
        """Their sum."""
        return self._plan("kt_plan_get_total")
