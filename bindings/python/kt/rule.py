# SPDX-License-Identifier: Apache-2.0
"""Rules say on which device modules run, and by what the experts are computed."""
from __future__ import annotations

from typing import Optional

from . import _values
from ._handle import Handle, need
from .context import Context
from .model import Path


class Rule(Handle):
    """An ordered list of entries; an empty one puts everything on "cpu". Rule.load(ctx, path) reads
    a YAML file as KTransformers users have it. An executor reads it while it is made."""

    def __init__(self, ctx: Context) -> None:
        need(ctx, Context, "ctx")
        self._make(ctx._session, "kt_rule_create", ctx._open)

    @classmethod
    def load(cls, ctx: Context, path: Path) -> "Rule":
        """The rule in a file."""
        need(ctx, Context, "ctx")
        self = cls.__new__(cls)
        self._make(ctx._session, "kt_rule_load", ctx._open, _values.text(path, "path"))
        return self

    def add(self, name_regex: Optional[str] = None, *, device: Optional[str] = None,
            experts_backend: Optional[str] = None) -> None:
        """Appends an entry for the modules that name_regex matches; None = all."""
        self._call("kt_rule_add", _values.optional_text(name_regex, "name_regex"),
                   _values.optional_text(device, "device"),
                   _values.optional_text(experts_backend, "experts_backend"))

    def device(self, module: str) -> str:
        """The decision for a module path."""
        return str(self._look("kt_rule_device", _values.text(module, "module")).decode())

    def experts_backend(self, module: str) -> str:
        """The experts backend for a module path."""
        return str(self._look("kt_rule_experts_backend", _values.text(module, "module")).decode())
