# SPDX-License-Identifier: Apache-2.0
"""Finds libkt, and refuses one that this package does not fit.

The library is, in this order: the file that the environment variable KT_LIBRARY names, the one
inside the package (a wheel has it), and what the system's loader finds as libkt.so.0.
"""
from __future__ import annotations

import ctypes
import os
from pathlib import Path

from . import _abi
from ._version import __version__

BUNDLE = Path(__file__).parent / "_bundle"
_SONAME = "libkt.so.0"


def _candidate() -> str:
    named = os.environ.get("KT_LIBRARY")
    if named:
        return named
    bundled = BUNDLE / "lib" / _SONAME
    return str(bundled) if bundled.exists() else _SONAME


def _open(path: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            f"libkt cannot be loaded ({error}); install a wheel that has it inside, or set "
            f"KT_LIBRARY to the path of {_SONAME}") from None


def _check_version(lib: ctypes.CDLL, path: str) -> None:
    """While the major version is 0, releases may differ in their ABI."""
    number, api = lib.kt_version(), lib.kt_api_version()
    found = (number >> 16, number >> 8 & 255)
    wanted = tuple(int(part) for part in __version__.split(".")[:2])
    same = found[0] == wanted[0] and (wanted[0] > 0 or found[1] == wanted[1])
    if not same or api < _abi.API_VERSION:
        raise ImportError(
            f"{path} is libkt {found[0]}.{found[1]}.{number & 255} (interface {api}), but this kt "
            f"package is {__version__} (interface {_abi.API_VERSION}); install the two of one "
            f"release, or let KT_LIBRARY name the right library")


def _load() -> ctypes.CDLL:
    path = _candidate()
    lib = _open(path)
    try:
        for name in ("kt_version", "kt_api_version"):
            getattr(lib, name).restype = ctypes.c_uint32
        _check_version(lib, path)
        for name, result, parameters in _abi.functions():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, parameters
    except AttributeError as error:
        raise ImportError(f"{path} is no libkt that this kt package {__version__} fits: {error}"
                          ) from None
    return lib


lib = _load()


def version() -> str:
    """Version of the library that is loaded."""
    number = lib.kt_version()
    return f"{number >> 16}.{number >> 8 & 255}.{number & 255}"
