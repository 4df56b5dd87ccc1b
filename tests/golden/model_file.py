#!/usr/bin/env python3
"""Writes model_file.json: what the PyPI package `gguf` (0.19.0) reads in SmolLM2-135M-Instruct Q4_1.

Usage: model_file.py MODEL.gguf > model_file.json
"""
import hashlib
import json
import sys

import gguf


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


reader = gguf.GGUFReader(sys.argv[1])
keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
layers, heads = keys["llama.block_count"], {"attn_q": keys["llama.attention.head_count"], "attn_k": keys["llama.attention.head_count_kv"]}

hf_modules = ["model.embed_tokens", "model.norm", "lm_head"]
for i in range(layers):
    hf_modules += [f"model.layers.{i}.{m}" for m in ("input_layernorm", "post_attention_layernorm")]
    hf_modules += [f"model.layers.{i}.self_attn.{m}_proj" for m in "qkvo"]
    hf_modules += [f"model.layers.{i}.mlp.{m}_proj" for m in ("gate", "up", "down")]
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
hf_names = {names.get_name(f"{m}.weight", (".weight",)): f"{m}.weight" for m in hf_modules}

tensors = []
for t in reader.tensors:
    data = t.data
    n = heads.get(t.name.split(".")[-2])
    if n:  # llama converters interleave the halves of a head: [head, half, i] is stored as [head, i, half]
        data = data.reshape(n, data.shape[0] // n // 2, 2, -1).swapaxes(1, 2)
    shape = [int(d) for d in reversed(t.shape)]
    tensors.append([hf_names[t.name], t.tensor_type.name, shape, short(data.tobytes())])

plain = {k: v for k, v in keys.items() if not isinstance(v, list)}
texts = {k: [len(v), short("\0".join(v).encode())] for k, v in keys.items() if isinstance(v, list) and isinstance(v[0], str)}
numbers = {k: [len(v), short(b"".join(x.to_bytes(4, "little", signed=True) for x in v))] for k, v in keys.items() if isinstance(v, list) and isinstance(v[0], int)}
lines = ",\n  ".join(json.dumps(t) for t in tensors)
out = {"plain": plain, "texts": texts, "numbers": numbers}
print(json.dumps(out, indent=1)[:-2] + f',\n "tensors": [\n  {lines}\n ]\n}}')
