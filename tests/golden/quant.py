"""Writes quant.safetensors: random blocks of every format and their values by the `gguf` package's numpy dequantiser.

Run: pip install gguf==0.19.0 numpy && python tests/golden/quant.py
"""

import json
import pathlib
import struct

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

WEIGHTS = 4 * 256
# Byte offsets of the f16 fields of a block; every other byte may be anything.
F16_FIELDS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def f16(rng, n):
    """Finite halves of both signs, a fifth of them subnormal (models have such scales)."""
    size = np.where(rng.random(n) < 0.2, 2.0 ** rng.uniform(-24, -14, n), 2.0 ** rng.uniform(-14, 2, n))
    return (size * rng.choice([-1, 1], n)).astype(np.float16)


def blocks(rng, name):
    """WEIGHTS weights as the file holds them, one block a row."""
    if name == "F32":
        return rng.standard_normal((WEIGHTS, 1)).astype(np.float32).view(np.uint8)
    if name == "F16":
        return f16(rng, WEIGHTS).reshape(-1, 1).view(np.uint8)
    if name == "BF16":
        upper = rng.standard_normal(WEIGHTS).astype(np.float32).view(np.uint32) >> 16
        return upper.astype(np.uint16).reshape(-1, 1).view(np.uint8)
    length, size = GGML_QUANT_SIZES[Type[name]]
    rows = rng.integers(0, 256, (WEIGHTS // length, size), dtype=np.uint8)
    for at in F16_FIELDS[name]:
        rows[:, at : at + 2] = f16(rng, len(rows)).reshape(-1, 1).view(np.uint8)
    return rows


def main():
    rng = np.random.default_rng(2)
    header, data = {}, b""
    for name in ["F32", "F16", "BF16", *F16_FIELDS]:
        raw = blocks(rng, name)
        values = dequantize(raw.reshape(1, -1).view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8)), Type[name])
        for key, dtype, array in [("values", "F32", values.astype(np.float32).ravel()), ("blocks", "U8", raw.ravel())]:
            end = len(data) + array.nbytes
            header[f"{name}.{key}"] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), end]}
            data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(__file__).with_suffix(".safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


main()
