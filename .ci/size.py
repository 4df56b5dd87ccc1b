#!/usr/bin/env python3
"""What of a shared library weighs how much, by the linker's map; exits with 1 when the file is over its budget.

usage: size.py LIBRARY MAP BUDGET_MB     LIBRARY is stripped, MAP is what LLD's -Map wrote
"""
import os
import re
import sys
from collections import Counter
from pathlib import Path

MB = 1e6
SHOWN = 10
# Address twice, size, alignment, an object file, and which of its sections.
INPUT = re.compile(r"^ *[0-9a-f]+ +[0-9a-f]+ +([0-9a-f]+) +\d+ {9}(\S.*):\(([^)]*)\)$")
OUTPUT = re.compile(r"^ *[0-9a-f]+ +[0-9a-f]+ +([0-9a-f]+) +\d+ (\.\S+)$")
CRATE = re.compile(r"(?:lib)?(\w+)-[0-9a-f]{16}\b")
# Rust's mangled names spell a crate `Cs`, a hash, and the name behind its length; the first is whose code it is.
MANGLED = re.compile(r"Cs[0-9A-Za-z]*_(\d+)_?(\w+)")
# These take no room in the file, or are not in a stripped one.
EMPTY = (".bss", ".tbss", ".symtab", ".strtab", ".shstrtab", ".comment", ".relro_padding")


def crate(path, section):
    if mangled := MANGLED.search(section):
        return mangled[2][: int(mangled[1])]
    name = os.path.basename(path.split("(")[0])
    # All crates in one, when they are optimised together: what has no name of its own.
    if name.endswith(".rcgu.o"):
        return "constants"
    found = CRATE.match(name)
    return found[1] if found else name if path.startswith("/") else "the linker"


def weights(lines):
    """Bytes a crate; what the linker makes itself (tables for unwinding, relocations) by its section."""
    found, section, made = Counter(), None, 0
    for line in lines:
        if match := OUTPUT.match(line):
            found[section] += made
            section, made = match[2], int(match[1], 16)
        elif (match := INPUT.match(line)) and section not in EMPTY:
            # Frames are many small pieces of one table.
            if section != ".eh_frame":
                found[crate(match[2], match[3])] += int(match[1], 16)
                made -= int(match[1], 16)
    found[section] += made
    return Counter({name: size for name, size in found.items() if name and name not in EMPTY and size > 0})


def main():
    library, linker_map, budget = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    size = library.stat().st_size / MB
    with open(linker_map, encoding="utf-8") as lines:
        found = weights(lines)
    print(f"{library.name}: {size:.2f} MB of {budget:g} MB")
    for name, weight in found.most_common(SHOWN):
        print(f"  {weight / MB:6.3f} MB  {name}")
    rest = sum(found.values()) - sum(weight for _, weight in found.most_common(SHOWN))
    print(f"  {rest / MB:6.3f} MB  {len(found) - SHOWN} more")
    if size > budget:
        sys.exit(f"{library.name} is {size - budget:.2f} MB over its budget")


main()
