# SPDX-License-Identifier: Apache-2.0
"""float32 matrices and vectors, in the memory of libkt or in a copy."""
from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional, Tuple

_CPU = (1, 0)  # DLPack's kDLCPU


class Floats:
    """A float32 array in row-major order that numpy, torch and memoryview read and write in place.

    numpy() and numpy.asarray() make no copy, and neither do torch.frombuffer(), torch.from_dlpack()
    and memoryview(). A matrix has rows: floats[i][j]. Whether it is libkt's memory or a copy says
    the property that gave it; libkt's memory lives as long as the array and what was made of it.
    """

    shape: Tuple[int, ...]
    _owner: Any = None

    if TYPE_CHECKING:  # what the array of ctypes has
        def __len__(self) -> int: ...
        def __iter__(self) -> Iterator[Any]: ...
        def __getitem__(self, index: Any) -> Any: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __buffer__(self, flags: int) -> memoryview: ...

    def numpy(self) -> Any:
        """A numpy array that shares the memory. Needs numpy."""
        import numpy

        return numpy.asarray(self)

    def tolist(self) -> Any:
        """Its numbers, a list of lists for a matrix."""
        return [row if isinstance(row, float) else list(row) for row in self]

    def tobytes(self) -> bytes:
        """Its numbers as they lie in memory."""
        return bytes(self)

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None,
                   copy: Optional[bool] = None) -> Any:
        """A DLPack capsule (of the unversioned kind)."""
        if stream is not None or dl_device not in (None, _CPU):
            raise BufferError("this memory is the CPU's")
        return _capsule(copied(self, self.shape) if copy else self)

    def __dlpack_device__(self) -> Tuple[int, int]:
        return _CPU


@functools.lru_cache(maxsize=256)
def _type(shape: Tuple[int, ...]) -> Any:
    kind: Any = ctypes.c_float
    for length in reversed(shape):
        kind = kind * length
    return type("Floats", (Floats, kind), {"shape": shape, "__module__": __name__})


def view(address: int, shape: Tuple[int, ...], owner: Any) -> Any:
    """The memory at an address, which lives as long as `owner`."""
    made = _type(shape).from_address(address)
    made._owner = owner
    return made


def copied(source: Any, shape: Tuple[int, ...]) -> Any:
    """A copy of a buffer, or of the memory at an address."""
    if isinstance(source, int):
        source = ctypes.string_at(source, ctypes.sizeof(_type(shape)))
    return _type(shape).from_buffer_copy(source)


def empty(shape: Tuple[int, ...]) -> Any:
    """Zeros."""
    return _type(shape)()


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
                ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                ("byte_offset", ctypes.c_uint64)]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_exported: Dict[int, Any] = {}
_NAME = b"dltensor"
_FLOAT = 2
_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
# By address: a py_object of what is being destroyed would bring it back.
_capsule_valid = ctypes.pythonapi.PyCapsule_IsValid
_capsule_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


def _delete(managed: int) -> None:
    _exported.pop(managed, None)


def _destroy(capsule: int) -> None:
    """A capsule that nobody took has its first name still."""
    if _capsule_valid(capsule, _NAME):
        _exported.pop(_capsule_pointer(capsule, _NAME), None)


_of_address = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_delete_thunk, _destroy_thunk = _of_address(_delete), _of_address(_destroy)


def _capsule(floats: Any) -> Any:
    shape = (ctypes.c_int64 * len(floats.shape))(*floats.shape)
    tensor = _Tensor(data=ctypes.addressof(floats), device_type=_CPU[0], device_id=_CPU[1],
                     ndim=len(shape), code=_FLOAT, bits=32, lanes=1,
                     shape=ctypes.addressof(shape))
    managed = _Managed(tensor=tensor, deleter=ctypes.cast(_delete_thunk, ctypes.c_void_p))
    address = ctypes.addressof(managed)
    _exported[address] = managed, shape, floats
    return _capsule_new(address, _NAME, ctypes.cast(_destroy_thunk, ctypes.c_void_p))
