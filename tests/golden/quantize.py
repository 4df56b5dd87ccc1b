"""Writes quantize.safetensors: rows of weights, and what others round them to.

Blocks by the `gguf` package's numpy, and by llama.cpp's own quantisers (ggml_quantize_chunk of the
library that node-llama-cpp brings) where that package has none, or where columns have an importance.

Run: pip install gguf==0.19.0 numpy && npm ci && python tests/golden/quantize.py [libggml-base.so]
"""

import ctypes
import json
import pathlib
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

HERE = pathlib.Path(__file__).parent
COLUMNS = 512
# bitsandbytes, `get_4bit_type("nf4")`.
NF4 = np.float32([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
BY_GGUF = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
BY_LLAMACPP = ["IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
IMPORTANT = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", *BY_LLAMACPP]


def weights(rng):
    """Rows as models have them, and odd ones."""
    normal = lambda size, n=1: size * rng.standard_normal((n, COLUMNS))
    outliers = normal(0.02, 4) * np.where(rng.random((4, COLUMNS)) < 0.01, 12, 1)
    rows = [
        normal(0.02, 8),
        outliers,
        0.01 * rng.standard_t(3, (4, COLUMNS)),
        np.abs(normal(0.05)),
        -np.abs(normal(0.05)) - 0.01,
        normal(1e-3),
        normal(30.0),
        np.full((1, COLUMNS), 0.375),
        np.zeros((1, COLUMNS)),
        rng.choice([-0.25, 0.0, 0.25], (1, COLUMNS)),
        np.eye(1, COLUMNS, 7) * 0.5,
    ]
    return np.concatenate(rows).astype(np.float32)


def by_llamacpp(library, name, rows, importance=None):
    length, size = GGML_QUANT_SIZES[Type[name]]
    out = np.zeros(rows.size // length * size, np.uint8)
    pointer = lambda array: None if array is None else array.ctypes.data_as(ctypes.c_void_p)
    call = library.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    written = call(Type[name], pointer(rows), pointer(out), 0, len(rows), COLUMNS, pointer(importance))
    assert written == out.size
    return out


def nf4_codes(rows):
    """The codes of `bitsandbytes.functional.quantize_nf4` (0.50, blocks of 64, its default backend), low nibbles alone."""
    levels = NF4.astype(np.float64)
    bounds = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    blocks = rows.reshape(-1, 64)
    largest = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), np.float32(1e-38))
    scaled = np.clip(blocks * (np.float32(1) / largest), -1, 1)
    return np.searchsorted(bounds, scaled.ravel()).astype(np.uint8)


def main():
    found = sys.argv[1:] or sorted(map(str, HERE.glob("node_modules/@node-llama-cpp/linux-*/bins/*/libggml-base.so")))
    library = ctypes.CDLL(found[0])
    rng = np.random.default_rng(7)
    rows = weights(rng)
    importance = (rng.gamma(0.5, 1.0, COLUMNS) + 1e-3).astype(np.float32)
    arrays = {"weights": rows, "importance": importance}
    for name in BY_GGUF:
        arrays[f"{name}.blocks"] = quantize(rows, Type[name]).view(np.uint8).ravel()
    for name in BY_LLAMACPP:
        arrays[f"{name}.blocks"] = by_llamacpp(library, name, rows)
    for name in IMPORTANT:
        arrays[f"{name}.important"] = by_llamacpp(library, name, rows, importance)
    arrays["NF4.codes"] = nf4_codes(rows)
    header, data = {}, b""
    for key, array in arrays.items():
        end = len(data) + array.nbytes
        dtype = {"float32": "F32", "uint8": "U8"}[str(array.dtype)]
        header[key] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (HERE / "quantize.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


main()
