"""What is left of two tasks once their adapters are one: each way to merge, beside both adapters
apart, one trained on both, and one trained on the first and then the second.

usage: merging.py run EPIPHYTE MODEL.gguf TASKS_DIR RESULTS.jsonl [--pairs A+B,C+D] [--seeds 0,1,2]
                [--seconds N] [--at-once N]
       merging.py page RESULTS.jsonl DOCS_DIR

Runs that RESULTS.jsonl has are not made again. Standard library only.
"""
import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from ours import Runner

# By name: arguments of `epiphyte merge` beside the two adapters.
MERGES = {
    "linear 1, 1": ["--method", "linear"],
    "soup (mean)": ["--method", "soup"],
    "task arithmetic, 0.7": ["--method", "task_arithmetic", "--lambda", "0.7"],
    "svd to rank 8": ["--method", "svd"],
    "slerp, 0.5": ["--method", "slerp", "--t", "0.5"],
    "ties, 0.2": ["--method", "ties", "--density", "0.2"],
    "ties, 0.5": ["--method", "ties", "--density", "0.5"],
    "magnitude, 0.5": ["--method", "magnitude_prune", "--density", "0.5"],
    "dare linear, 0.5": ["--method", "dare_linear", "--density", "0.5"],
    "dare ties, 0.5": ["--method", "dare_ties", "--density", "0.5"],
}
APART = ["the base alone", "adapter of A", "adapter of B", "trained on both", "A, then B"]
ROWS = [*APART, *MERGES]
N = 400


class Merging(Runner):
    """Calls of the program, as [Runner] makes them."""

    def ask(self, *arguments):
        return self.call([*arguments, "--json"])

    def data(self, task, part):
        return self.args.tasks / f"{task}.{part}.jsonl"

    def train(self, data, out, seed, *more):
        self.ask("train", "--data", data, "--out", out, "--seed", seed, "--validation", "none",
                  *more)
        return out

    def score(self, pair, seed, name, adapters):
        """Exact match on both tasks, as a line of the results."""
        given = [text for adapter in adapters for text in ("--adapter", adapter)]
        exact = [self.ask("eval", "--data", self.data(task, "test"), *given)["exact_match"]
                 for task in pair]
        line = {"pair": "+".join(pair), "seed": seed, "name": name, "exact": exact}
        with self.lock, self.args.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{line['pair']} {seed} {name}: {exact}", flush=True)

    def make(self, pair, seed, folder, done):
        """The rows of one pair and seed that are not `done`; trains what they need."""
        folder.mkdir()
        data = [self.data(task, f"train{N}") for task in pair]

        @cache
        def a():
            return self.train(data[0], folder / "a", seed)

        @cache
        def b():
            return self.train(data[1], folder / "b", seed)

        def joint():
            both = folder / "both.jsonl"
            both.write_text("".join(path.read_text() for path in data))
            return self.train(both, folder / "joint", seed)

        def then():
            return self.train(data[1], folder / "then", seed, "--init", a())

        def merged(how):
            out = folder / "merged"
            self.ask("merge", a(), b(), *how, "--out", out)
            return out

        made = dict(zip(APART[1:], [a, b, joint, then]))
        made |= {name: lambda how=how: merged(how) for name, how in MERGES.items()}
        for name in ROWS:
            if ("+".join(pair), seed, name) not in done:
                self.score(pair, seed, name, [made[name]()] if name in made else [])


def run(args):
    runner = Merging(args)
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    done = {(line["pair"], line["seed"], line["name"]) for line in map(json.loads, lines)}
    pairs = [tuple(pair.split("+")) for pair in args.pairs.split(",")]
    wanted = [(pair, seed) for seed in map(int, args.seeds.split(",")) for pair in pairs]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.at_once) as pool:
        # The first fills the cache of compiled shaders for the others.
        runner.ask("eval", "--data", runner.data(pairs[0][0], "test"))
        place = lambda pair, seed: Path(folder) / f"{'-'.join(pair)}-{seed}"
        list(pool.map(lambda job: runner.make(*job, place(*job), done), wanted))


def scores(lines):
    """By pair and row: percents of each task, by seed."""
    found = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        found[line["pair"]][line["name"]][line["seed"]] = [100 * exact for exact in line["exact"]]
    return found


def values(numbers):
    return f"{statistics.mean(numbers):.1f} ({', '.join(f'{number:.1f}' for number in numbers)})"


def page(found):
    """The tables between the page's markers."""
    out = []
    for pair, rows in found.items():
        a, b = pair.split("+")
        out += [f"A is `{a}`, B is `{b}`:", "", "| | A | B | the lower of the means |",
                "|---|---|---|---|"]
        for name in ROWS:
            each = list(zip(*(exact for _, exact in sorted(rows[name].items()))))
            low = min(map(statistics.mean, each))
            out.append(f"| {name} | {values(each[0])} | {values(each[1])} | {low:.1f} |")
        out.append("")
    return "\n".join(out)


def plot(found):
    """A dot a row: how much of A is left to the right, of B upwards."""
    size, left, top, gap = 300, 50, 40, 90
    width = left + len(found) * (size + gap) + 130
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{size + 100}" '
           'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>']
    colour = lambda i: "#888" if i < len(APART) else f"hsl({(i - len(APART)) * 36}, 70%, 45%)"
    mark = lambda i: chr(ord("a") + i)
    for number, (pair, rows) in enumerate(found.items()):
        a, b = pair.split("+")
        x0, y0 = left + number * (size + gap), top + size
        out.append(f'<text x="{x0}" y="20">exact match, %; means of three seeds</text>'
                   f'<text x="{x0 + size / 2}" y="{y0 + 32}" text-anchor="middle">A: {a}</text>'
                   f'<text x="{x0 - 34}" y="{top + size / 2}" '
                   f'transform="rotate(-90 {x0 - 34} {top + size / 2})">B: {b}</text>')
        for tick in range(0, 101, 25):
            at = size * tick / 100
            out.append(f'<path d="M{x0 + at} {y0}V{top}M{x0} {y0 - at}H{x0 + size}" stroke="#ddd"/>'
                       f'<text x="{x0 + at}" y="{y0 + 15}" text-anchor="middle">{tick}</text>'
                       f'<text x="{x0 - 6}" y="{y0 - at + 4}" text-anchor="end">{tick}</text>')
        for i, name in enumerate(ROWS):
            x, y = (statistics.mean(each) for each in zip(*rows[name].values()))
            px, py = x0 + size * x / 100, y0 - size * y / 100
            out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="7" fill="{colour(i)}" '
                       f'fill-opacity="0.8"/><text x="{px:.1f}" y="{py + 4:.1f}" fill="white" '
                       f'text-anchor="middle">{mark(i)}</text>')
    for i, name in enumerate(ROWS):
        out.append(f'<text x="{width - 150}" y="{top + 16 * i}" fill="{colour(i)}">'
                   f'{mark(i)}: {name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def write(args):
    found = scores(map(json.loads, args.results.read_text().splitlines()))
    path = args.docs / "merging.md"
    begin, end = "<!-- scores -->\n", "<!-- /scores -->\n"
    head, rest = path.read_text().split(begin)
    path.write_text(head + begin + page(found) + end + rest.split(end)[1])
    (args.docs / "merging-scores.svg").write_text(plot(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    for name in ["epiphyte", "model", "tasks", "results"]:
        running.add_argument(name, type=Path)
    running.add_argument("--pairs", default="dates+numbers")
    running.add_argument("--seeds", default="0,1,2")
    running.add_argument("--seconds", type=float, default=1e6)
    running.add_argument("--at-once", type=int, default=3)
    running.set_defaults(do=run)
    writing = commands.add_parser("page")
    for name in ["results", "docs"]:
        writing.add_argument(name, type=Path)
    writing.set_defaults(do=write)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    sys.exit(main())
