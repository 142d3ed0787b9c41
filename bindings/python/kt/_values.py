# SPDX-License-Identifier: Apache-2.0
"""Python values as C has them. ctypes cuts numbers and texts that do not fit without a word, so
everything that a caller gives passes here first."""
from __future__ import annotations

import array
import ctypes
import enum
import math
import operator
import os
import sys
from typing import Any, Optional, Type, TypeVar

from ._library import lib

E = TypeVar("E", bound=enum.IntEnum)
_NATIVE = ("", "@", "=", "<" if sys.byteorder == "little" else ">")
_FLOATS = (ctypes.c_float, ctypes.c_double)


def text(value: Any, what: str) -> bytes:
    """UTF-8 of a str, bytes or a path."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        # What os.fsdecode made of bytes that are no UTF-8 becomes those bytes again.
        value = value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        raise TypeError(f"{what} must be a str or a path, not {type(value).__name__}")
    if b"\0" in value:
        raise ValueError(f"{what} must not contain a zero byte")
    return value


def optional_text(value: Any, what: str) -> Optional[bytes]:
    return None if value is None else text(value, what)


def integer(value: Any, kind: Any, what: str) -> int:
    """A number that the ctypes type `kind` can hold."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None
    if kind(number).value != number:
        raise ValueError(f"{what} is out of range: {number}")
    return number


def real(value: Any, what: str) -> float:
    if isinstance(value, (str, bytes)) or not hasattr(type(value), "__float__"):
        if not hasattr(type(value), "__index__"):
            raise TypeError(f"{what} must be a number, not {type(value).__name__}")
    return float(value)


def constant(kind: Type[E], value: Any, what: str) -> int:
    """The number of an enum's constant, which may be given by its name."""
    if isinstance(value, str):
        try:
            return int(kind[value.upper()])
        except KeyError:
            names = ", ".join(kind.__members__).lower()
            raise ValueError(f"{what} is {value!r}; it must be one of {names}") from None
    return integer(value, ctypes.c_int32, what)


def _field(kind: Any, value: Any, what: str) -> Any:
    if kind is ctypes.c_char_p:
        return text(value, what)
    return real(value, what) if kind in _FLOATS else integer(value, kind, what)


def options(struct: Type[ctypes.Structure], **values: Any) -> ctypes.Structure:
    """An option struct with libkt's defaults, and what is given and not None in place of them."""
    made = struct()
    getattr(lib, struct.__name__ + "_init")(ctypes.byref(made), ctypes.sizeof(made))
    kinds = dict(struct._fields_)  # type: ignore[arg-type]
    for name, value in values.items():
        if value is not None:
            setattr(made, name, _field(kinds[name], value, name))
    return made


def sized(struct: Type[ctypes.Structure]) -> Any:
    """A struct for libkt to fill."""
    return struct(size=ctypes.sizeof(struct))


def record(kind: Any, struct: ctypes.Structure, **others: Any) -> Any:
    """A NamedTuple of the fields of a struct that have its fields' names."""
    values = {name: others[name] if name in others else getattr(struct, name)
              for name in kind._fields}
    return kind(**{name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                   for name, value in values.items()})


def _numbers(values: Any, code: str, what: str) -> "array.array[Any]":
    if isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"{what} must be a sequence of numbers, not {type(values).__name__}")
    try:
        view = memoryview(values)
    except TypeError:
        if hasattr(values, "tolist"):
            values = values.tolist()
    else:
        if view.ndim != 1:
            raise ValueError(f"{what} must have one dimension, not {view.ndim}")
        if view.format[-1] == code and view.format[:-1] in _NATIVE:
            made = array.array(code)
            made.frombytes(view.tobytes())
            return made
        values = list(values)
    return array.array(code, values)


def int32(values: Any, what: str) -> "array.array[int]":
    """A copy of integers as int32: a sequence, a numpy array, a torch tensor, a buffer."""
    try:
        return _numbers(values, "i", what)
    except OverflowError:
        raise ValueError(f"{what} has a number that does not fit in 32 bits") from None
    except TypeError as error:
        raise TypeError(f"{what} must be a sequence of integers: {error}") from None


def float32(values: Any, what: str) -> "array.array[float]":
    """A copy of finite numbers as float32."""
    try:
        made = _numbers(values, "f", what)
    except TypeError as error:
        raise TypeError(f"{what} must be a sequence of numbers: {error}") from None
    if not math.isfinite(sum(made)):
        raise ValueError(f"{what} has a NaN or an infinity")
    return made


def address(values: "array.array[Any]") -> int:
    """Where an array's numbers are, as long as it lives and keeps its length."""
    return values.buffer_info()[0]


def copied(code: str, pointer: Optional[int], count: int) -> "array.array[Any]":
    """A copy of `count` numbers of C."""
    made = array.array(code)
    if count:
        made.frombytes(ctypes.string_at(pointer or 0, count * made.itemsize))
    return made
