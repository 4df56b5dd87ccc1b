"""Logits of the tiny models by transformers, in f64: build/tiny_llama*.safetensors -> tiny_llama_logits.safetensors

usage: transformers_logits.py       needs torch, transformers, safetensors; run tiny_llama.py first

Holds, for each model, `<stem>.ids` [T] i64 and `<stem>.logits` [T, vocab_size] f32. (transformers turns positions in f32 even here.)
"""
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

here = Path(__file__).parent
TOLERANCE = 1e-5  # of the largest logit, between two f64 passes that differ in their RoPE tables


def load(path):
    """The model in f64, and the tensors of the file that are not its weights."""
    with safe_open(path, "pt") as file:
        config = LlamaConfig(**json.loads(file.metadata()["config"]), attn_implementation="eager")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    extra = {name: tensors.pop(name) for name in ["ids", "exact_logits"]}
    model = LlamaForCausalLM(config).double().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model, extra


def logits(path):
    model, extra = load(path)
    ids, exact = extra["ids"], extra["exact_logits"]
    with torch.no_grad():
        ours = model(input_ids=ids[None]).logits[0]
    distance = ((ours - exact).abs().max() / exact.abs().max()).item()
    print(f"{path.stem}: largest difference from exact_forward.py, relative to the largest logit: {distance:.2e}")
    assert distance < TOLERANCE, "transformers and exact_forward.py disagree"
    return ids, ours.float().contiguous()


def main():
    golden = {}
    for path in sorted((here / "build").glob("tiny_llama*.safetensors")):
        golden[f"{path.stem}.ids"], golden[f"{path.stem}.logits"] = logits(path)
    assert golden, "nothing in build/: run tiny_llama.py first"
    save_file(golden, here / "tiny_llama_logits.safetensors")


if __name__ == "__main__":
    main()
