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
F16_FIELDS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "TQ2_0": [64], "IQ4_NL": [0]}
# Formats of our own: weights and bytes of a block, its f16 fields.
OWN = {"NF4": (64, 34, [0]), "NF4_DQ": (256, 134, [0]), "Q2_1": (64, 20, [0, 2]), "Q3_0": (64, 26, [0])}
# bitsandbytes 0.49, `get_4bit_type("nf4")`.
NF4 = np.float32([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])


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
    length, size, fields = OWN[name] if name in OWN else (*GGML_QUANT_SIZES[Type[name]], F16_FIELDS[name])
    rows = rng.integers(0, 256, (WEIGHTS // length, size), dtype=np.uint8)
    for at in fields:
        rows[:, at : at + 2] = f16(rng, len(rows)).reshape(-1, 1).view(np.uint8)
    return rows


def own_values(name, rows):
    """The values of blocks of our own formats, as `runtime/quant/<name>.rs` says them."""
    half = lambda at: rows[:, at : at + 2].copy().view(np.float16).astype(np.float32)
    if name == "Q2_1":
        q = np.zeros((len(rows), 64), np.float32)
        for i in range(64):
            byte = 4 + i // 32 * 8 + i % 32 // 16 * 4 + i % 4
            q[:, i] = rows[:, byte] >> (i % 16 // 4 * 2) & 3
        return half(0) * q + half(2)
    if name == "Q3_0":
        q = np.zeros((len(rows), 64), np.float32)
        for i in range(64):
            low = rows[:, 10 + i // 32 * 8 + i % 32 // 16 * 4 + i % 4] >> (i % 16 // 4 * 2) & 3
            q[:, i] = low + 4 * (rows[:, 2 + i // 8] >> i % 8 & 1)
        return half(0) * (q - 4)
    start, scales = (2, half(0)) if name == "NF4" else (6, half(0) * rows[:, 2:6].astype(np.float32))
    codes = rows[:, start:].reshape(len(rows), -1, 16)
    levels = NF4[np.concatenate([codes & 15, codes >> 4], axis=2)].reshape(len(rows), -1, 64)
    return scales[:, :, None] * levels


def main():
    rng = np.random.default_rng(2)
    header, data = {}, b""
    for name in ["F32", "F16", "BF16", *F16_FIELDS, *OWN]:
        raw = blocks(rng, name)
        values = own_values(name, raw) if name in OWN else dequantize(raw.reshape(1, -1).view({"F32": np.float32, "F16": np.float16}.get(name, np.uint8)), Type[name])
        for key, dtype, array in [("values", "F32", values.astype(np.float32).ravel()), ("blocks", "U8", raw.ravel())]:
            end = len(data) + array.nbytes
            header[f"{name}.{key}"] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), end]}
            data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(__file__).with_suffix(".safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


main()
