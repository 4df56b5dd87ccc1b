"""PEFT on what we wrote: its logits must be those under the adapters of peft_logits/ that were converted.

usage: peft_reads.py DIR       needs torch, transformers, peft, safetensors; run tiny_llama.py first

DIR/<name>/ comes of peft_logits/<name>/ by `epiphyte adapter convert -m tiny_llama.gguf`, straight or by way of a GGUF file.
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from peft_logits import ADAPTERS, adapted, here

TOLERANCE = 1e-6  # of the largest logit: golden data in f32, and the B that a GGUF file of one alpha rounds once more


def main():
    golden = load_file(here / "peft_logits.safetensors")
    for name in ADAPTERS:
        with torch.no_grad():
            found = adapted(Path(sys.argv[1]), {name: 1.0})(input_ids=golden["ids"][None]).logits[0]
        expected = golden[f"{name}.logits"].double()
        distance = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"{name}: {distance:.1e} of the largest logit from PEFT's own adapter")
        assert distance <= TOLERANCE


if __name__ == "__main__":
    main()
