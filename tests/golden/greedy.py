"""Greedy ids of the exact forward pass after each prompt: prompts.json, tokens.json -> greedy.json

usage: greedy.py MODEL.gguf

`gap` is the lead of the best logit over the second at each step, `second` that second id: where the gap is small, rounding may
choose either. Stop tokens are chosen like any other.
"""
import json
import sys
from pathlib import Path

from exact_forward import Llama

STEPS = 48
here = Path(__file__).parent


def main():
    model = Llama(sys.argv[1])
    tokens = json.loads((here / "tokens.json").read_text())["prompts"]
    golden = []
    for prompt in json.loads((here / "prompts.json").read_text()):
        prompt_ids = tokens[prompt["name"]]
        ids, second, gaps = zip(*model.greedy(prompt_ids, STEPS))
        golden.append({**prompt, "prompt_ids": prompt_ids, "ids": ids, "second": second, "gap": [round(g, 5) for g in gaps]})
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in golden)
    (here / "greedy.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    gaps = [g for entry in golden for g in entry["gap"]]
    print(f"{len(gaps)} steps, of which {sum(g < 0.01 for g in gaps)} with a gap under 0.01 and {sum(g < 0.05 for g in gaps)} under 0.05")


if __name__ == "__main__":
    main()
