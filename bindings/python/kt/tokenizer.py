# SPDX-License-Identifier: Apache-2.0
"""Text to ids and back, and chat templates."""
from __future__ import annotations

import ctypes
from typing import Any, Iterable, List, Mapping, Optional, Tuple, Union

from . import _structs, _values
from ._handle import Handle, Native, need
from ._library import lib
from .constants import Thinking
from .context import Context
from .model import Path, token_id

#: A message: {"role": ..., "content": ...} or (role, content).
Message = Union[Mapping[str, str], Tuple[str, str]]


def template_names() -> List[str]:
    """Names of the known templates."""
    return str(lib.kt_template_names().decode()).split(", ")


class Decoder:
    """Turns tokens into text one after another. A character that is not whole yet waits for its
    next token. Belongs to one conversation; for one thread at a time."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = need(tokenizer, Tokenizer, "tokenizer")
        self._state = _values.sized(_structs.kt_decode_state)

    def next(self, token: int) -> str:
        """Text that one more token adds; "" for special ones."""
        return self._next(_values.integer(token, ctypes.c_int32, "token"))

    def end(self) -> str:
        """What is left of a character that was cut off, as U+FFFD. The decoder is as new then."""
        return self._next(-1)

    def _next(self, token: int) -> str:
        tokenizer = self._tokenizer
        length = ctypes.c_size_t()
        text = ctypes.create_string_buffer(tokenizer._text_room(token))
        tokenizer._call("kt_tokenizer_decode_next", ctypes.byref(self._state), token, text,
                        len(text), ctypes.byref(length))
        return text.raw[:length.value].decode("utf-8", "replace")


class Tokenizer(Handle):
    """A tokenizer read from a model folder, a tokenizer.json or a GGUF file. Ids are lists."""

    def __init__(self, ctx: Context, path: Path) -> None:
        need(ctx, Context, "ctx")
        self._make(ctx._session, "kt_tokenizer_load", ctx._open, _values.text(path, "path"))

    @property
    def vocab_size(self) -> int:
        """The largest id + 1."""
        return int(self._look("kt_tokenizer_vocab_size"))

    @property
    def bos_id(self) -> Optional[int]:
        """None = there is no such token; likewise eos_id and pad_id."""
        return token_id(self._look("kt_tokenizer_bos_id"))

    @property
    def eos_id(self) -> Optional[int]:
        return token_id(self._look("kt_tokenizer_eos_id"))

    @property
    def pad_id(self) -> Optional[int]:
        return token_id(self._look("kt_tokenizer_pad_id"))

    def token_id(self, token: str) -> Optional[int]:
        """The id of a token as the vocabulary spells it; None when there is none."""
        return token_id(self._look("kt_tokenizer_token_id", _values.text(token, "token")))

    def _ids(self, name: str, *args: Any) -> List[int]:
        memory, count = Native(lib.kt_free), ctypes.c_size_t()
        self._call(name, *args, ctypes.byref(memory.pointer), ctypes.byref(count))
        return _values.copied("i", memory.pointer.value, count.value).tolist()

    def encode(self, text: str, *, add_special: bool = False) -> List[int]:
        """Ids of a text; add_special runs the post-processor (a bos token, for DeepSeek)."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        raw = text.encode("utf-8", "surrogatepass")
        return self._ids("kt_tokenizer_encode", raw, len(raw), int(bool(add_special)))

    def _text_of(self, ids: Any, skip_special: bool) -> bytes:
        tokens = _values.int32(ids, "ids")
        memory, length = Native(lib.kt_free), ctypes.c_size_t()
        self._call("kt_tokenizer_decode", _values.address(tokens), len(tokens),
                   int(bool(skip_special)), ctypes.byref(memory.pointer), ctypes.byref(length))
        return ctypes.string_at(memory.pointer, length.value)

    def decode(self, ids: Any, *, skip_special: bool = False) -> str:
        """Text of ids; skip_special leaves special tokens out. Unknown ids give nothing."""
        return self._text_of(ids, skip_special).decode("utf-8", "replace")

    def _text_room(self, token: int) -> int:
        """Bytes that Decoder.next() may write for a token."""
        size = len(self._text_of([token], False)) if token >= 0 else 0
        return 64 + 8 * size

    def decoder(self) -> Decoder:
        """A decoder for one stream of tokens."""
        return Decoder(self)

    def apply_template(self, template: str, messages: Iterable[Message], *,
                       thinking: Union[Thinking, str] = Thinking.ON) -> List[int]:
        """Ids of a conversation, ending where the assistant is to speak. Roles are "system" (first
        only), "user", "assistant" (and "observation" where the template has it); the last message
        is the user's. thinking: "on", "off", "either", for templates that know thoughts (qwen3)."""
        pairs = [_pair(message) for message in messages]
        array = (_structs.kt_message * len(pairs))()
        for message, (role, content) in zip(array, pairs):
            message.size = ctypes.sizeof(message)
            message.role = _values.text(role, "role")
            message.content = _values.text(content, "content")
        return self._ids("kt_tokenizer_apply_template_thinking", _values.text(template, "template"),
                         _values.constant(Thinking, thinking, "thinking"), array, len(pairs))

    def stop_ids(self, template: str) -> List[int]:
        """Ids that end the assistant's turn."""
        room = 64
        ids, count = (ctypes.c_int32 * room)(), ctypes.c_size_t()
        self._call("kt_tokenizer_stop_ids", _values.text(template, "template"), ids, room,
                   ctypes.byref(count))
        return list(ids[:count.value])


def _pair(message: Message) -> Tuple[str, str]:
    if isinstance(message, Mapping):
        missing = [key for key in ("role", "content") if key not in message]
        if missing:
            raise ValueError(f"a message has no {missing[0]}")
        return message["role"], message["content"]
    if not isinstance(message, (tuple, list)) or len(message) != 2:
        raise TypeError("a message must be a dict of role and content, or a pair of them")
    return message[0], message[1]
