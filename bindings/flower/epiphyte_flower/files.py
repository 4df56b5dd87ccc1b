"""What both sides share: files as Flower's records, and calls of the command line."""

import json
import subprocess

import numpy as np
from flwr.app import Array, ArrayRecord


def packed(name, path):
    """A file as one array of bytes: Flower asks for each array by itself."""
    return ArrayRecord({name: Array(np.frombuffer(path.read_bytes(), np.uint8))})


def unpacked(record, name, path):
    """Writes the file that [packed] made a record of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record[name].numpy().astype(np.uint8).tobytes())
    return path


def call(epiphyte, *arguments):
    """What `epiphyte … --json` prints. Errors: `RuntimeError` with its own line."""
    command = [str(epiphyte), *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"epiphyte {command[1]}: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout)
