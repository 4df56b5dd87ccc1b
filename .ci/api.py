#!/usr/bin/env python3
"""The public API of the library, an item a line, read off the documentation that `cargo doc` made.

usage: api.py [--check]     Writes docs/api.txt, or says how what is public differs from it and exits with 1.
"""
import difflib
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINNED = ROOT / "docs" / "api.txt"
PAGE = re.compile(r"(struct|enum|trait|fn|constant|type|macro|union|static)\.(\w+)\.html")
MEMBER = re.compile(r'id="(?:method|tymethod|structfield|variant|associatedconstant)\.([\w.]+)"')
# From here on a page tells of traits that any type may have.
TRAITS = re.compile(r'id="(?:trait-implementations|synthetic-implementations|implementors)"')


def listing(folder):
    for page in sorted(folder.rglob("*.html")):
        found = PAGE.fullmatch(page.name)
        text = page.read_text(encoding="utf-8")
        if not found or "<title>Redirection" in text:
            continue
        path = "::".join((*page.parent.relative_to(folder.parent).parts, found[2]))
        yield f"{found[1]} {path}"
        own = text if found[1] == "trait" else TRAITS.split(text)[0]
        yield from sorted({f"  {path}::{member.replace('.field.', '.')}" for member in MEMBER.findall(own) if not member.endswith(".fields")})


def main():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    now = [line + "\n" for line in listing(target / "doc" / "epiphyte")]
    if not now:
        sys.exit("there is no documentation yet; run `cargo doc --no-deps`")
    if "--check" not in sys.argv[1:]:
        PINNED.write_text("".join(now), encoding="utf-8")
        return
    then = PINNED.read_text(encoding="utf-8").splitlines(keepends=True)
    if now != then:
        sys.stdout.writelines(difflib.unified_diff(then, now, "docs/api.txt", "what is public now", n=0))
        sys.exit("the public API changed: if that is meant, run `make api`, and tell of it in CHANGELOG.md")


main()
