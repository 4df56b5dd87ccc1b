"""Averages the same deltas by `epiphyte aggregate` and by Flower's FedAvg: seconds, memory, and how
far apart the means are.

usage: measure.py VERSION DELTA KEY [COUNT]

Makes COUNT deltas (1,000) of random numbers, each signed by a key of its own, in the form of DELTA
(one of f32 made from VERSION). Flower gets them in memory, as a ServerApp has them once it has
pulled their objects: it makes records of the objects, and then the mean. What pulling them takes is
not counted, nor is a signature checked. `EPIPHYTE` names the program.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from delta import Delta
from testing import EPIPHYTE


def written(metadata, tensors):
    header, at = {"__metadata__": metadata}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape),
                        "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(v.tobytes() for v in tensors.values())


def random_delta(like, rng):
    """Its bytes, and its numbers by the names of tensors."""
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    manifest = json.dumps(like.manifest | {"signer": f"ed25519:{public}"})
    metadata = like._metadata | {"epiphyte.manifest": manifest}
    tensors = {name: rng.normal(0, 1e-3, values.shape).astype("<f4")
               for name, (_, _, values) in like._tensors.items()}
    name = Delta(written(metadata, tensors), verify=False).name
    metadata["epiphyte.signature"] = key.sign(name.encode()).hex()
    return written(metadata, tensors), tensors


def aggregated(parent, deltas, key, out):
    """Seconds and peak bytes of the program, and its report."""
    command = [EPIPHYTE, "aggregate", deltas, "--parent", parent, "--out", out, "--key", key,
               "--mode", "fedavg", "--no-cosines", "--cap", "0", "--json"]
    out.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen(list(map(str, command)), stdout=said)
        while process.poll() is None:
            # Its own, where what `wait4` says begins with what this process has.
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            peak = max([peak] + [int(kib) * 1024 for kib in found])
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        assert process.returncode == 0
        said.seek(0)
        return seconds, peak, json.load(said)


def factors(path):
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header.pop("__metadata__")
    return {name: np.frombuffer(data, "<f4", int(np.prod(info["shape"])),
                                end + info["data_offsets"][0]).reshape(info["shape"])
            for name, info in header.items()}


def main():
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    parent, like, key = map(Path, sys.argv[1:4])
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 1000
    like, rng = Delta.open(like), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        folder, pulled, mean = Path(folder), [], {}
        few = min(count, 10)
        for deltas in ("all", "few"):
            (folder / deltas).mkdir()
        for i in range(count):
            data, tensors = random_delta(like, rng)
            (folder / "all" / f"{i:05}.delta").write_bytes(data)
            if i < few:
                (folder / "few" / f"{i:05}.delta").write_bytes(data)
            record = RecordDict({
                "arrays": ArrayRecord({name: Array(v) for name, v in tensors.items()}),
                "metrics": MetricRecord({"num-examples": 1})})
            pulled.append((record.object_id, {name: found.deflate() for name, found
                                              in get_all_nested_objects(record).items()}))
            for name, values in tensors.items():
                mean[name] = mean.get(name, 0) + values.astype(np.float64) / count
        files = sorted((folder / "all").iterdir())
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        print(f"{count} deltas of {len(data)} bytes, {len(tensors)} arrays; load "
              f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        _, small, _ = aggregated(parent, folder / "few", key, folder / "out")
        for turn in range(3):
            began = time.perf_counter()
            for file in files:
                file.read_bytes()
            read = time.perf_counter() - began
            ours, peak, report = aggregated(parent, folder / "all", key, folder / "out")
            assert report["taken"] == count, report["refusals"]
            began = time.perf_counter()
            records = [inflate_object_from_contents(name, dict(objects))
                       for name, objects in pulled]
            inflated = time.perf_counter()
            theirs = aggregate_arrayrecords(records, "num-examples")
            inflating, flower = inflated - began, time.perf_counter() - inflated
            del records
            print(f"turn {turn}: reading alone {gigabytes / read:.2f} GB/s; epiphyte {ours:.2f} s, "
                  f"{gigabytes / ours:.2f} GB/s, peak {peak / 1e6:.0f} MB (of {few}: "
                  f"{small / 1e6:.0f} MB); FedAvg {flower:.2f} s after {inflating:.2f} s for "
                  f"records, peak {getrusage(RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB; "
                  f"{flower / ours:.1f} and {(inflating + flower) / ours:.1f} times as long")
        old, new = factors(parent), factors(folder / "out")

        def error(found, exact):
            worst = max(np.abs(found(name) - exact(name)).max() for name in mean)
            return worst / max(np.abs(exact(name)).max() for name in mean)

        ours = error(lambda name: new[name], lambda name: old[name].astype(np.float64) + mean[name])
        theirs = error(lambda name: theirs[name].numpy(), lambda name: mean[name])
        print(f"largest difference from numpy in f64, of the largest number: epiphyte's version "
              f"{ours:.1e}, FedAvg's mean {theirs:.1e}")


if __name__ == "__main__":
    main()
