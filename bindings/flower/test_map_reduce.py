"""A round spread over a local Dask cluster gives the bits of one that was not."""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import unittest

from safetensors.numpy import load_file
from testing import EPIPHYTE, ROOT, TINY, TRAIN, epiphyte, first_version

DELTAS = 5


@unittest.skipUnless(importlib.util.find_spec("distributed"), "dask[distributed] is not installed")
@unittest.skipUnless(EPIPHYTE.exists(), f"{EPIPHYTE} is not built")
class MapReduce(unittest.TestCase):
    def test_any_number_of_workers_gives_the_same_bits(self):
        here = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        parent, deltas = first_version(here), here / "deltas"
        deltas.mkdir()
        for i in range(DELTAS):
            epiphyte("delta", "key", here / f"{i}.pem")
            epiphyte("train", "--data", here / "seed.jsonl", "--init", here / "first", "--out",
                     here / f"trained{i}", "--steps", 1 + i, *TRAIN)
            epiphyte("delta", "make", parent, here / f"trained{i}", deltas / f"{i}.delta", "--key",
                     here / f"{i}.pem", "--examples", 3 * i + 1, "--drop-frozen", "--model", TINY)
        epiphyte("aggregate", deltas, "--parent", parent, "--out", here / "one.safetensors",
                 "--key", here / "server.pem", "--min-clients", DELTAS)
        one = load_file(here / "one.safetensors")
        for workers, share in [(1, 5), (2, 2), (4, 1)]:
            out = here / f"{workers}.safetensors"
            done = subprocess.run(
                [sys.executable, ROOT / "examples" / "map_reduce.py", deltas, parent, out, "--key",
                 here / "server.pem", "--workers", str(workers), "--share", str(share),
                 "--epiphyte", EPIPHYTE, f"--aggregate=--min-clients {DELTAS}"],
                capture_output=True, text=True, timeout=300)
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            self.assertIn(f"{DELTAS} taken, 0 refused", done.stdout)
            many = load_file(out)
            self.assertEqual(one.keys(), many.keys())
            for name, values in one.items():
                self.assertEqual(values.tobytes(), many[name].tobytes(), name)


if __name__ == "__main__":
    unittest.main()
