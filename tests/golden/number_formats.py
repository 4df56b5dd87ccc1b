"""Numbers in narrow formats by ml_dtypes, for tests/numbers.rs.

usage: number_formats.py OUT      needs numpy and ml_dtypes; writes OUT/number_formats.json

The bits of each value in each format; those beyond a format's largest are left out where ml_dtypes
makes NaN or infinity of them, since we saturate.
"""
import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

FORMATS = {"FP32": np.float32, "FP16": np.float16, "BF16": ml_dtypes.bfloat16, "FP8 E4M3": ml_dtypes.float8_e4m3fn, "FP8 E5M2": ml_dtypes.float8_e5m2, "FP4 E2M1": ml_dtypes.float4_e2m1fn}
random = np.random.default_rng(3)
VALUES = [1234.56789, 0.1, -0.3333333333, 3.141592653589793, 1e-3, -65504.0, 448.0, 464.0, 1e-7, 5.960464477539063e-8, 0.25, 5.0, -0.75, 1.75, 2.5]
VALUES += [float(s * v) for s, v in zip(random.choice([-1, 1], 60), np.exp(random.uniform(-18, 9, 60)))]
out = {}
for name, kind in FORMATS.items():
    made = np.array(VALUES).astype(kind)
    codes = made.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[made.dtype.itemsize])
    out[name] = [[v, int(c), float(m)] for v, c, m in zip(VALUES, codes, made) if np.isfinite(float(m))]
(Path(sys.argv[1]) / "number_formats.json").write_text(json.dumps(out) + "\n")
