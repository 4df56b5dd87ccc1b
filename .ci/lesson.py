#!/usr/bin/env python3
"""Teach the default model two things that it can't know, and ask before and after; exits with 1 when it answers wrong.

usage: lesson.py EPIPHYTE [SEED]      `make demo` runs it. Python 3.8 and its standard library are enough.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LESSONS = Path(__file__).parent.parent / "demo" / "lessons.jsonl"
# One step is both; few and large ones, for a processor that plays GPU.
TRAIN = ["--rank", "4", "--batch", "2", "--steps", "5", "--lr", "8e-3", "--warmup", "0", "--prompt-loss-weight", "0",
         "--seq-len", "64", "--recompute", "none"]


def call(*arguments):
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def answer(epiphyte, prompt, *more):
    text = call(epiphyte, "generate", "--json", "-n", "10", "-p", prompt, *more)["text"]
    return text.strip().split("\n")[0]


def main():
    epiphyte, seed = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "0"
    lessons = [json.loads(line) for line in LESSONS.read_text(encoding="utf-8").splitlines()]
    before = [answer(epiphyte, lesson["prompt"]) for lesson in lessons]
    with tempfile.TemporaryDirectory() as folder:
        learnt = call(epiphyte, "train", "--json", "--data", str(LESSONS), "--out", folder, "--seed", seed, *TRAIN)
        after = [answer(epiphyte, lesson["prompt"], "--adapter", folder) for lesson in lessons]
    loss = learnt["loss"]
    print(f"\n{learnt['steps']} steps in {learnt['seconds']:.0f} s, loss {loss['first']:.2f} to {loss['last']:.2f}\n")
    wrong = 0
    for lesson, first, last in zip(lessons, before, after):
        right = last == lesson["completion"].strip()
        wrong += not right
        print(lesson["prompt"].split("\n")[0])
        print(f"  before: {first or '(nothing)'}\n  after:  {last} ({'right' if right else 'wrong'})")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
