# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes big mixture-of-experts language models with LoRA: libkt for Python, through ctypes.

Names follow the C interface: kt_lora_save(lora, path) is lora.save(path), and fields of option
structs are keyword arguments; None is the library's default. See Handle for what holds for all
objects (closing, threads) and Error for failures. numpy is used where it is asked for.
"""
from ._handle import Handle
from ._library import version
from ._version import __version__
from .arrays import Floats
from .batch import Batch
from .constants import (IGNORE_LABEL, Compute, DType, ForwardMode, Isa, LogLevel, Status,
                        Thinking)
from .context import Context
from .convert import convert
from .dataset import Dataset, Example
from .errors import Error
from .executor import Executor, Loss
from .generator import Generator
from .lora import Lora, LoraTensor
from .model import Model, ModelInfo, TensorInfo
from .optimizer import Optimizer, random_permutation, schedule_rate
from .plan import DevicePlan, Plan
from .rule import Rule
from .tokenizer import Decoder, Tokenizer, template_names
from .trace import Trace, TraceRow

__all__ = [
    "IGNORE_LABEL", "Batch", "Compute", "Context", "DType", "Dataset", "Decoder", "DevicePlan",
    "Error", "Example", "Executor", "Floats", "ForwardMode", "Generator", "Handle", "Isa",
    "LogLevel", "Lora", "LoraTensor", "Loss", "Model", "ModelInfo", "Optimizer", "Plan", "Rule",
    "Status", "TensorInfo", "Thinking", "Tokenizer", "Trace", "TraceRow", "__version__", "convert",
    "random_permutation", "schedule_rate", "template_names", "version",
]
