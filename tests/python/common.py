# SPDX-License-Identifier: Apache-2.0
"""What the tests here share: the reference cases, read without numpy.

A test is a program: TEST CASES_DIR [ARGUMENT...]. KT_LIBRARY and PYTHONPATH say what is tested.
"""
import array
import json
import math
import os
import struct
import sys
import unittest
from pathlib import Path

import kt

CASES = Path(sys.argv[1])
ARGUMENTS = sys.argv[2:]
MODEL = CASES / "v3bf16/model"
ADAPTER = CASES / "v3bf16/adapter"
CODES = {"F32": "f", "I64": "q"}


class Golden:
    """The arrays of a safetensors file of F32 and I64."""

    def __init__(self, path):
        raw = path.read_bytes()
        size, = struct.unpack("<Q", raw[:8])
        self._header = json.loads(raw[8:8 + size])
        self._data = raw[8 + size:]

    def __contains__(self, name):
        return name in self._header

    def __getitem__(self, name):
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        made = array.array(CODES[entry["dtype"]])
        made.frombytes(self._data[begin:end])
        return made


def flat(floats):
    """The numbers of kt.Floats, row after row."""
    made = array.array("f")
    made.frombytes(floats.tobytes())
    return made


def error(got, want):
    """Relative L2 error."""
    assert len(got) == len(want), (len(got), len(want))
    size = math.sqrt(sum(w * w for w in want))
    difference = math.sqrt(sum((g - w) ** 2 for g, w in zip(got, want)))
    return difference / size if size else difference


class Case:
    """A reference case, opened."""

    def __init__(self, name="v3bf16", num_threads=1, compute="f32", **options):
        self.numbers = Golden(CASES / name / "golden.safetensors")
        self.ctx = kt.Context(num_threads, **options)
        self.model = kt.Model(self.ctx, CASES / name / "model")
        self.lora = kt.Lora.load(self.model, CASES / name / "adapter")
        self.executor = kt.Executor(self.model, self.lora, compute=compute, logits_chunk=7)
        self.batch = kt.Batch(self.ctx)
        ids, labels, ends = (self.numbers[n] for n in ("input_ids", "labels", "cu_seqlens"))
        for i, (begin, end) in enumerate(zip(ends, ends[1:])):
            self.batch.add(ids[begin:end], labels[begin:end])
            if "padding" in self.numbers:
                self.batch.add_padding(self.numbers["padding_id"][0], self.numbers["padding"][i])


class Test(unittest.TestCase):
    def refuses(self, status, function, *args, **options):
        """The call raises kt.Error with that status and a sentence, which is given back."""
        with self.assertRaises(kt.Error) as caught:
            function(*args, **options)
        self.assertIs(caught.exception.status, status, str(caught.exception))
        self.assertTrue(str(caught.exception))
        return str(caught.exception)


def run():
    """Runs the tests of the program."""
    os.environ.pop("PYTHONWARNINGS", None)
    unittest.main(argv=sys.argv[:1])
