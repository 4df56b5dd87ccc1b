"""The reader against the files that the Rust side wrote: `python -m unittest` in this folder.

`python test_delta.py --write` makes tests/golden/delta/expected.json, which the Rust side checks.
"""

import hashlib
import json
import pathlib
import sys
import unittest

from delta import Delta, DeltaError

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "delta"


def seen(path):
    delta = Delta.open(path)
    hashes = {name: hashlib.sha256(v.tobytes()).hexdigest() for name, v in delta.factors.items()}
    return {"name": delta.name, "signer": delta.manifest["signer"], "factors": hashes}


def all_seen():
    return {path.stem: seen(path) for path in sorted(GOLDEN.glob("*.delta"))}


class Reads(unittest.TestCase):
    def test_what_rust_wrote(self):
        self.assertEqual(all_seen(), json.loads((GOLDEN / "expected.json").read_text()))
        self.assertEqual(len(all_seen()), 5)

    def test_damage_is_refused(self):
        for path in GOLDEN.glob("*.delta"):
            data = path.read_bytes()
            for at in (len(data) - 1, 8 + len(data) // 100, len(data) * 9 // 10):
                changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                with self.assertRaises(DeltaError, msg=f"{path.name} at {at}"):
                    Delta(changed)
            with self.assertRaises(DeltaError):
                Delta(data[:-1])


if __name__ == "__main__":
    if "--write" in sys.argv:
        (GOLDEN / "expected.json").write_text(json.dumps(all_seen(), indent=1) + "\n")
    else:
        unittest.main()
