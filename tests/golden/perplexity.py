"""Perplexity of moby_dick.txt by the exact forward pass, in llama.cpp's definition: tokens.json -> perplexity.json

usage: perplexity.py MODEL.gguf

Consecutive windows of 512 tokens, each from an empty cache; positions 256 to 510 predict the next token, 255 scores a window. What
is left at the end is dropped. This model's file asks for no BOS. `nll` is the mean negative log-likelihood of each window.
"""
import json
import sys
from pathlib import Path

import numpy as np

from exact_forward import Llama

WINDOW = 512
here = Path(__file__).parent


def window_nll(model, ids):
    logits = model.forward(ids, last=WINDOW // 2)[:-1]
    top = logits.max(-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    return float(np.mean(log_sum - logits[np.arange(len(logits)), ids[WINDOW // 2 + 1 :]]))


def main():
    model = Llama(sys.argv[1])
    ids = json.loads((here / "tokens.json").read_text())["moby_dick"]
    windows = len(ids) // WINDOW
    nll = [window_nll(model, ids[i * WINDOW : (i + 1) * WINDOW]) for i in range(windows)]
    perplexity = float(np.exp(np.mean(nll)))
    golden = {"window": WINDOW, "windows": windows, "tokens": windows * (WINDOW // 2 - 1), "perplexity": perplexity, "nll": nll}
    (here / "perplexity.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(f"perplexity {perplexity:.6f} over {windows} windows")


if __name__ == "__main__":
    main()
