#!/usr/bin/env python3
"""Two simulated phones learn something each, and one average of what they send knows both; exits with 1 when it does not.

usage: phones.py EPIPHYTE [ARGUMENTS of `federate simulate`]      `make demo` runs it. Python 3.8 and its standard library are enough.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DEMO = Path(__file__).parent.parent / "demo"
PHONES = sorted((DEMO / "phones").glob("*.jsonl"))
TEST = DEMO / "phones-test.jsonl"
# One round of few and large steps, for a processor that plays GPU.
ROUND = ["--rounds", "1", "--mode", "ffa", "--rank", "4", "--batch", "1", "--local-steps", "4", "--lr", "6e-3",
         "--prompt-loss-weight", "0", "--seq-len", "64", "--recompute", "none", "--no-cosines"]


def call(*arguments):
    done = subprocess.run([str(argument) for argument in arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def answers(epiphyte, *adapter):
    """What is said to each question, and whether it is right."""
    lessons = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()]
    report = call(epiphyte, "eval", "--data", TEST, "--show", len(lessons), "--json", *adapter)
    wrong = {answer["line"]: answer["got"].strip().split("\n")[0] for answer in report["wrong"]}
    return [(wrong.get(line, lesson["completion"].strip()), line not in wrong) for line, lesson in enumerate(lessons, 1)]


def main():
    epiphyte, extra = sys.argv[1], sys.argv[2:]
    questions = [json.loads(line)["prompt"].split("\n")[0] for line in TEST.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        told = call(epiphyte, "federate", "simulate", "--data", DEMO / "phones", "--out", folder / "all", "--json", *ROUND, *extra)
        key = folder / "key.pem"
        call(epiphyte, "delta", "key", key, "--json")
        said = {}
        for number, phone in enumerate(PHONES):
            # The version that this phone's delta alone makes is what the phone has.
            alone = folder / f"{phone.stem}.safetensors"
            call(epiphyte, "aggregate", folder / "all" / "round-1" / f"device-{number}.delta", "--parent", folder / "all" / "version-1.safetensors",
                 "--out", alone, "--key", key, "--mode", "ffa", "--min-clients", "1", "--json")
            said[f"{phone.stem}'s phone"] = answers(epiphyte, "--adapter", alone)
        said["averaged"] = answers(epiphyte, "--adapter", folder / "all" / "adapter")
    steps = told["options"]["duration"]["Steps"]
    sent = told["uploaded_bytes"] / len(PHONES)
    print(f"\n{steps} steps on each of {len(PHONES)} phones, {sent / 1000:.0f} kB sent by each, one average, {told['seconds']:.0f} s\n")
    for i, question in enumerate(questions):
        print(question)
        for name, of in said.items():
            answer, right = of[i]
            print(f"  {name + ':':<14} {answer or '(nothing)'}{' (right)' if right else ''}")
    alone = [any(right for _, right in of) and not all(right for _, right in of) for name, of in said.items() if name != "averaged"]
    sys.exit(not (all(right for _, right in said["averaged"]) and all(alone)))


if __name__ == "__main__":
    main()
