#!/usr/bin/env python3
"""Text stubs of Apple's libraries, from a list of the names that they may be asked for.

usage: tbd.py LIST TARGET FOLDER     LIST has lines `/path/of/library: _name …`; TARGET is as in `arm64-ios`
"""
import sys
from pathlib import Path

STUB = """--- !tapi-tbd
tbd-version: 4
targets: [ {target} ]
install-name: '{library}'
exports:
  - targets: [ {target} ]
    symbols: [ {names} ]
...
"""


def main():
    source, target, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    for line in source.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            library, names = line.split(": ")
            # Names may hold `$`, which YAML wants in quotes.
            quoted = ", ".join(f"'{name}'" for name in names.split())
            text = STUB.format(target=target, library=library, names=quoted)
            (folder / f"{Path(library).name}.tbd").write_text(text, encoding="utf-8")


main()
