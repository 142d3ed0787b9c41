# SPDX-License-Identifier: Apache-2.0
"""What libkt's failures are in Python."""
from __future__ import annotations

from typing import Union

from .constants import Status


class Error(Exception):
    """A call that failed. `status` says how, and str() is the library's sentence: what is wrong,
    where (file, key, tensor), and what to do.

    Arguments that are none (another type, arrays of different lengths, a number that does not fit)
    are TypeError or ValueError, as elsewhere in Python.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        try:
            self.status: Union[Status, int] = Status(status)
        except ValueError:
            self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message
