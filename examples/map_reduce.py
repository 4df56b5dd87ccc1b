"""A round of many deltas as a map and a reduce on Dask: parts side by side, then their sum.

usage: map_reduce.py DELTAS PARENT.safetensors OUT.safetensors --key server.pem [--workers 4]
           [--scheduler ADDRESS] [--share 1000] [--epiphyte PROGRAM] [--aggregate "--mode ffa"]

Sums are exact, so neither the number of workers nor their order changes a bit of the result. DELTAS
is a folder that every worker sees; a bucket works by a mount, or by `fetch` below. Any engine that
maps and reduces will do: a worker runs one command. Needs `pip install "dask[distributed]"`.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from dask.distributed import Client, LocalCluster, as_completed

FAN_IN = 16


def aggregate(program, files, parent, out, key, more):
    command = [program, "aggregate", *files, "--parent", parent, "--out", out, "--key", key, "--json"]
    done = subprocess.run([*map(str, command), *more], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def part(args, number, files, folder):
    """Averages some deltas, or adds some parts, into a part."""
    out = Path(folder) / f"{number}.part"
    aggregate(args.epiphyte, files, args.parent, out, args.key, ["--partial", *args.more])
    return out


def run(client, args):
    """The report of the whole round."""
    deltas = sorted(path for path in args.deltas.iterdir() if path.suffix == ".delta")
    with tempfile.TemporaryDirectory(dir=args.out.resolve().parent) as folder:
        shares = [deltas[i:i + args.share] for i in range(0, len(deltas), args.share)]
        waiting = as_completed(
            client.submit(part, args, n, share, folder, pure=False) for n, share in enumerate(shares))
        parts, made = [], len(shares)
        for future in waiting:
            parts.append(future.result())
            # Parts are added up as they come, so that no one waits for the slowest to begin.
            if len(parts) == FAN_IN and waiting.count():
                waiting.add(client.submit(part, args, made, parts, folder, pure=False))
                parts, made = [], made + 1
        return aggregate(args.epiphyte, parts, args.parent, args.out, args.key, args.more)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ["deltas", "parent", "out"]:
        parser.add_argument(name, type=Path)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--scheduler", help="of a cluster that is there; else one on this machine")
    parser.add_argument("--share", type=int, default=1000, help="deltas of a part")
    parser.add_argument("--epiphyte", default="epiphyte")
    parser.add_argument("--aggregate", dest="more", type=str.split, default=[], metavar="ARGUMENTS",
                        help="further ones of `epiphyte aggregate`")
    args = parser.parse_args()
    local = dict(n_workers=args.workers, threads_per_worker=1, dashboard_address=None)
    with Client(args.scheduler or LocalCluster(**local)) as client:
        began = time.time()
        report = run(client, args)
    seconds = time.time() - began
    print(f"version {report['version']}: {report['taken']} taken, {report['refused']} refused, "
          f"{report['n_bytes'] / seconds / 1e6:.0f} MB/s, {seconds:.1f} s")


if __name__ == "__main__":
    main()
