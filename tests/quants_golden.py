"""Writes blocks of ggml's types, and what the gguf package says that they hold, in f32.

  python quants_golden.py DIRECTORY

Blocks are random, but the first ones have scales that are extreme: the smallest that a half has,
the largest with which all values stay finite, zero, and a negative one.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

# Where each block has its scales of 16 bits.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "IQ3_XXS": [0],
}  # fmt: skip


def main():
    directory = Path(sys.argv[1])
    random = np.random.default_rng(20)
    for name, places in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        num_values, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (1536 // num_values, num_bytes), np.uint8)
        for row, block in enumerate(blocks):
            extremes = [2.0**-24, 65504.0, 0.0, -(2.0**-14)]
            for at in places:
                scale = extremes[row] if row < 4 else random.normal() / 100
                block[at : at + 2] = np.array([scale], np.float16).view(np.uint8)
            if name in ("Q4_K", "Q5_K") and row == 3:
                # The largest and the least scale and minimum of six bits.
                block[4:16] = [255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0]
            if name == "Q6_K" and row == 3:
                block[192:208] = [128, 127, 0, 1] * 4
        values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        (directory / f"{name}.blocks").write_bytes(blocks.tobytes())
        (directory / f"{name}.values").write_bytes(values.tobytes())


main()
