# SPDX-License-Identifier: Apache-2.0
"""Write blocks.safetensors: blocks of GGUF's formats and what the package gguf decodes them to.

    python make_block_goldens.py

Needs gguf 0.19.0, numpy, safetensors. Half of the blocks hold numbers that the package quantised
(where it can), the others hold random bits with the scales below, infinity and NaN left out."""
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.numpy import save_file

HERE = Path(__file__).parent
# Zero, subnormal, smallest normal, ordinary, largest, and negative ones.
SCALES = np.array([0, 2**-24, 2**-14, 0.0123, 1, 65504, -0.37, -65504], np.float16)
WHERE = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}  # bytes of the scales in a block


def random_blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (len(SCALES), size), np.uint8)
    for i, at in enumerate(WHERE[name]):
        blocks[:, at:at + 2] = np.roll(SCALES, 3 * i).view(np.uint8).reshape(-1, 2)
    return blocks


def main() -> None:
    rng = np.random.default_rng(5)
    tensors = {}
    for name in WHERE:
        kind = GGMLQuantizationType[name]
        blocks = random_blocks(name, rng)
        if name in ("Q8_0", "Q4_0"):
            numbers = rng.standard_normal((8, 32)).astype(np.float32)
            blocks = np.concatenate([quants.quantize(numbers, kind), blocks])
        tensors[name + ".blocks"] = blocks
        tensors[name + ".values"] = quants.dequantize(blocks, kind).astype(np.float32)
    save_file(tensors, HERE / "blocks.safetensors")


if __name__ == "__main__":
    main()
