"""What the tests share: the program, the tiny model, and version 1 of an adapter of it."""

import json
import os
import pathlib
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TINY = ROOT / "tests" / "golden" / "tiny_llama.gguf"
EPIPHYTE = pathlib.Path(os.environ.get("EPIPHYTE", ROOT / "target" / "release" / "epiphyte"))
TRAIN = ["--batch", 2, "--seq-len", 32, "--lr", "0.01", "--validation", "none", "--model", TINY]


def epiphyte(*arguments):
    """What the program prints as JSON."""
    done = subprocess.run([EPIPHYTE, *map(str, arguments), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def first_version(folder):
    """`server.pem`, `server.pub`, `seed.jsonl` and `v1.safetensors` of the adapter `adapter`."""
    public = epiphyte("delta", "key", folder / "server.pem")["public_key"]
    (folder / "server.pub").write_text(public + "\n")
    (folder / "seed.jsonl").write_text('{"prompt": "a ", "completion": "b"}\n')
    epiphyte("train", "--data", folder / "seed.jsonl", "--out", folder / "first", "--steps", 1,
             "--rank", 4, *TRAIN)
    epiphyte("delta", "start", folder / "first", folder / "v1.safetensors", "--id", "adapter",
             "--clip", 0, "--key", folder / "server.pem", "--model", TINY)
    return folder / "v1.safetensors"
