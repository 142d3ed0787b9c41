# SPDX-License-Identifier: Apache-2.0
"""Writes encode.safetensors: a matrix and what PyTorch makes of it in FP8, INT8 and INT4.

    python3 make_encode_goldens.py

With torch 2.9.1 and safetensors. tests/unit/test_encode.c holds kt_encode, and test_convert.c the
conversion of whole matrices, to these numbers. Scales are the largest magnitude of their elements
over 448, 127 or 7, in float32.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

ROWS, COLS = 140, 300  # last blocks and groups are partial
NUMBERS = 4096


def blocks(matrix, rows, cols):
    """The largest magnitude for each rows x cols block, and the same spread over the elements."""
    largest = torch.stack([torch.stack([b.abs().max() for b in band.split(cols, dim=1)])
                           for band in matrix.split(rows, dim=0)])
    spread = largest.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return largest, spread[:matrix.shape[0], :matrix.shape[1]]


def quantise(matrix, rows, cols, top):
    largest, spread = blocks(matrix, rows, cols)
    return matrix / (spread / top), largest / top


def pack(values):
    codes = (values.round() + 8).to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def main():
    torch.manual_seed(1)
    sizes = torch.exp(torch.randn(ROWS, COLS))  # many magnitudes, subnormal codes among them
    matrix = torch.randn(ROWS, COLS) * sizes * 0.02
    f8, f8_scale = quantise(matrix, 128, 128, 448)
    i8, i8_scale = quantise(matrix, 1, COLS, 127)
    i4, i4_scale = quantise(matrix, 1, 128, 7)
    numbers = torch.randn(NUMBERS) * torch.exp2(torch.randint(-14, 9, (NUMBERS,)).float())
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (codes[1:] + codes[:-1]) / 2  # ties, and the floats next to them
    near = [torch.nextafter(between, torch.tensor(s)) for s in (0.0, 1e9)]
    numbers = torch.cat([numbers, codes, between, *near, -between]).clamp(-448, 448)
    save_file({"matrix": matrix, "f8": f8.clamp(-448, 448).to(torch.float8_e4m3fn),
               "f8_scale": f8_scale, "i8": i8.round().to(torch.int8), "i8_scale": i8_scale,
               "i4": pack(i4), "i4_scale": i4_scale, "numbers": numbers,
               "numbers_f8": numbers.to(torch.float8_e4m3fn)},
              Path(__file__).parent / "encode.safetensors")


if __name__ == "__main__":
    main()
