# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of a model over packed batches."""
from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Optional, Union

from . import _structs, _values
from ._handle import Handle, need
from .arrays import Floats, copied, empty
from .batch import Batch
from .constants import Compute, ForwardMode, Status
from .errors import Error
from .lora import Lora
from .model import Model
from .rule import Rule


class Loss(NamedTuple):
    """loss is loss_sum / num_targets: the token mean of the batch."""

    loss: float
    loss_sum: float
    num_targets: int


class Executor(Handle):
    """Runs a model with an adapter, or without one (and without backward).

    compute: "bf16" (default) or "f32". rule: where modules run; or device, for all of them: "cpu",
    "cuda:0", "auto". experts_backend: "amx", "cpu", "device", "auto"; None = the rule's.
    logits_chunk: tokens whose logits exist at one time. device_memory: bytes that each device with
    memory of its own may take.
    """

    def __init__(self, model: Model, lora: Optional[Lora] = None, *,
                 compute: Union[Compute, str, None] = None, rule: Optional[Rule] = None,
                 device: Optional[str] = None, experts_backend: Optional[str] = None,
                 logits_chunk: Optional[int] = None, device_memory: Optional[int] = None) -> None:
        need(model, Model, "model")
        if rule is not None and device is not None:
            raise ValueError("rule and device both say where modules run; give one of them")
        rule_native = need(rule, Rule, "rule")._open if rule is not None else None
        options = _values.options(
            _structs.kt_executor_options, experts_backend=experts_backend,
            compute=None if compute is None else _values.constant(Compute, compute, "compute"),
            logits_chunk=logits_chunk, device_memory=device_memory)
        if device is not None:
            rule_native = self._device_rule(model, device)
        if rule_native is not None:
            options.rule = rule_native.pointer
        self._forget()
        self._vocab_size = model.info.vocab_size
        lora_native = need(lora, Lora, "lora")._open if lora is not None else None
        self._make(model._session, "kt_executor_create", model._open, lora_native,
                   ctypes.byref(options))

    def _forget(self) -> None:
        """There is no forward any more to read of or to go backward through."""
        self._logprobs: Optional[Floats] = None
        self._num_tokens: Optional[int] = None

    @staticmethod
    def _device_rule(model: Model, device: str) -> Any:
        rule = Rule.__new__(Rule)
        rule._make(model._session, "kt_rule_create", model._session.native)
        rule.add(device=device)
        return rule._open

    def experts_backend(self, layer: int) -> Optional[str]:
        """What computes the routed experts of a layer; None where it has none."""
        name = self._look("kt_executor_experts_backend",
                          _values.integer(layer, ctypes.c_int32, "layer"))
        return name.decode() if name else None

    def forward(self, batch: Batch, mode: Union[ForwardMode, str] = ForwardMode.TRAIN) -> Loss:
        """Forward over the whole batch. "train" keeps what backward needs, and the loss is the
        token mean; "custom" is for a loss of your own; "eval" keeps nothing and has no dropout.
        The batch must not change until backward returns. Status.NUMERIC when the loss is not
        finite."""
        need(batch, Batch, "batch")
        number = _values.constant(ForwardMode, mode, "mode")
        loss = _values.sized(_structs.kt_loss)
        with self._held() as native:
            self._forget()
            sequences, session = batch._open, self._session
            session.call("kt_executor_forward", native, sequences, number, ctypes.byref(loss))
            self._num_tokens = num_tokens = session.look("kt_batch_num_tokens", sequences)
            self._logprobs = copied(session.look("kt_executor_logprobs", native), (num_tokens,))
        made: Loss = _values.record(Loss, loss)
        return made

    @property
    def logprobs(self) -> Optional[Floats]:
        """A copy of log p of each token's label, float32 [num_tokens] in batch order: entry i is
        for labels[i] predicted from the tokens before it, 0 where labels[i] is ignored or starts
        a sequence. None before a forward."""
        self._open
        return self._logprobs

    def backward(self, dlogprobs: Optional[Any] = None) -> None:
        """Backward of the latest forward; adds to the adapter's gradients. After mode "train":
        without dlogprobs. After "custom": dlogprobs is d(loss)/d(logprobs), [num_tokens] finite
        numbers: a sequence, an array or a tensor. A backward that fails after it began clears all
        gradients."""
        if dlogprobs is None:
            self._call("kt_executor_backward", None)
            return
        self._open
        values = _values.float32(dlogprobs, "dlogprobs")
        if self._num_tokens is None:
            raise Error(Status.STATE, "backward needs a forward in mode TRAIN or CUSTOM before it")
        if len(values) != self._num_tokens:
            raise ValueError(f"dlogprobs has {len(values)} numbers; the latest forward had "
                             f"{self._num_tokens} tokens")
        self._call("kt_executor_backward", _values.address(values))

    def logits(self, batch: Batch) -> Floats:
        """Logits of every token, float32 [num_tokens, vocab_size], in memory of their own. For
        tests and small batches. A forward before it has no backward any more."""
        need(batch, Batch, "batch")
        with self._held() as native:
            self._forget()
            made: Floats = empty((batch.num_tokens, self._vocab_size))
            self._session.call("kt_executor_logits", native, batch._open, made)
            return made

    def reserve(self, num_tokens: int) -> None:
        """Allocates what steps of up to num_tokens tokens keep between them."""
        count = _values.integer(num_tokens, ctypes.c_size_t, "num_tokens")
        with self._held() as native:
            self._forget()
            self._session.call("kt_executor_reserve", native, count)

    def set_step(self, step: int) -> None:
        """Sets the number that keys dropout, so that a resumed run draws the same masks."""
        self._call("kt_executor_set_step", _values.integer(step, ctypes.c_uint64, "step"))

    def get_sharing(self) -> str:
        """What is known of how device and host share experts ("auto"), for a run that goes on from
        here. May change from one release to the next."""
        record = ctypes.c_char_p()
        self._call("kt_executor_get_sharing", ctypes.byref(record))
        return (record.value or b"").decode()

    def set_sharing(self, record: str) -> None:
        """Goes by what get_sharing gave, and with the bits of the run that took it."""
        self._call("kt_executor_set_sharing", _values.text(record, "record"))
