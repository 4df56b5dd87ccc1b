"""`epiphyte train` with its defaults on the eight tasks, then `epiphyte eval`: exact match of each run, as JSON lines.

usage: ours.py EPIPHYTE MODEL.gguf TASKS_DIR RESULTS.jsonl [--seconds N] [--seeds 0,1,2] [--at-once N]
                [--five TASK,TASK:LR:EPOCHS:PROMPT_WEIGHT]

Runs that RESULTS.jsonl has are not made again; what is under way when --seconds are over is ended. Standard library only.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tasks import TASKS

# How the command line spells things; nothing below knows it.


def train_arguments(run, data, out, extra):
    arguments = ["train", "--data", data, "--out", out, "--seed", run["seed"], "--json", *extra]
    if run["set"] == "five":
        # The recipe of PEFT's five: nothing held back, no early end.
        arguments += ["--lr", run["lr"], "--epochs", run["epochs"], "--prompt-loss-weight", run["prompt_weight"], *FIVE]
    return arguments


FIVE = ["--batch", 8, "--rank", 8, "--alpha", 16, "--schedule", "linear", "--warmup", "5%", "--optimizer", "adamw", "--max-grad-norm", 1]


def eval_arguments(data, adapter):
    return ["eval", "--data", data, "--adapter", adapter, "--json"]


def recipe(report):
    """What the run's own report says it did: rate, epochs, steps, last loss."""
    options = report.get("options", {})
    return {"lr": options.get("learning_rate", options.get("lr")), "epochs": options.get("duration", {}).get("Epochs"), "steps": report.get("steps"), "loss": report["loss"]["last"]}


def runs(seeds, five):
    """In the order of use: all tasks of one seed, then the next."""
    each = [[{"set": "default", "task": task, "n": n, "seed": seed} for n in (400, 100) for task in TASKS] for seed in seeds]
    if five:
        tasks, lr, epochs, weight = five.split(":")
        same = {"set": "five", "n": 400, "lr": float(lr), "epochs": int(epochs), "prompt_weight": float(weight)}
        each.insert(1, [same | {"task": task, "seed": seed} for task in tasks.split(",") for seed in range(5)])
    return [run for some in each for run in some]


def key(run):
    return run["set"], run["task"], run["n"], run["seed"]


class Runner:
    def __init__(self, args):
        self.args, self.end, self.lock, self.failed = args, time.time() + args.seconds, threading.Lock(), 0

    def call(self, arguments):
        """The command's JSON. Errors: `TimeoutExpired`; `RuntimeError` with the end of what it said."""
        command = [str(self.args.epiphyte), *map(str, arguments), "--model", str(self.args.model)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, self.end - time.time()), stdin=subprocess.DEVNULL)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-600:]}")
        return json.loads(done.stdout)

    def make(self, run, folder):
        if time.time() > self.end:
            return
        begun = time.time()
        name = f"{run['task']}-{run['n']}-{run['seed']}-{run['set']}"
        try:
            report = self.call(train_arguments(run, self.args.tasks / f"{run['task']}.train{run['n']}.jsonl", folder / name, self.args.extra.split()))
            trained = time.time() - begun
            measured = self.call(eval_arguments(self.args.tasks / f"{run['task']}.test.jsonl", folder / name))
        except subprocess.TimeoutExpired:
            return print(f"{name}: no time", flush=True)
        except (RuntimeError, ValueError) as error:
            self.failed += 1
            return print(f"{name}: {error}", flush=True)
        seconds = time.time() - begun
        line = recipe(report) | run | {"exact": measured["exact_match"], "test_loss": measured["loss"], "seconds": round(seconds, 3), "report": report}
        with self.lock, self.args.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {100 * line['exact']:.1f} %, {line['steps']} steps, {trained:.1f} s + {seconds - trained:.1f} s on {report['device']}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ["epiphyte", "model", "tasks", "results"]:
        parser.add_argument(name, type=Path)
    parser.add_argument("--seconds", type=float, default=1e6)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=5)
    parser.add_argument("--five", help="TASK,TASK:LR:EPOCHS:PROMPT_WEIGHT, five seeds each")
    parser.add_argument("--extra", default="", help="further arguments of train, for a trial")
    parser.add_argument("--only", help="one task, for a trial")
    return parser.parse_args()


def main():
    args = arguments()
    done = {key(json.loads(line)) for line in args.results.read_text().splitlines()} if args.results.exists() else set()
    wanted = [run for run in runs([int(seed) for seed in args.seeds.split(",")], args.five) if key(run) not in done and args.only in (None, run["task"])]
    runner = Runner(args)
    with tempfile.TemporaryDirectory() as folder:
        # The first alone: it tests the device and fills the caches of compiled shaders for the
        # others.
        for run in wanted[:1]:
            runner.make(run, Path(folder))
        with ThreadPoolExecutor(args.at_once) as pool:
            list(pool.map(lambda run: runner.make(run, Path(folder)), wanted[1:]))
    sys.exit(runner.failed > 0)


if __name__ == "__main__":
    main()
