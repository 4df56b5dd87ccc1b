"""Loads a checkpoint of `epiphyte checkpoint tests/golden/tiny_llama.gguf FOLDER --type f32` by
transformers and compares its logits with tiny_llama_logits.safetensors, its ids with ours.

usage: checkpoint.py FOLDER [TEXT ID...]       needs torch, transformers, safetensors
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
assert not any(told.values()), told
golden = load_file(Path(__file__).parent / "tiny_llama_logits.safetensors")
ids, expected = golden["tiny_llama.ids"], golden["tiny_llama.logits"]
with torch.no_grad():
    logits = model.double()(input_ids=ids[None]).logits[0].float()
distance = ((logits - expected).abs().max() / expected.abs().max()).item()
print(f"largest difference of logits, relative to the largest: {distance:.2e}")
assert distance < 1e-4
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "the quick in\n\n 1234 <|im_start|>user"
ids = tokenizer(text)["input_ids"]
assert tokenizer.decode(ids) == text, tokenizer.decode(ids)
print("ids", ids)
