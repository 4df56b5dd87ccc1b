#!/usr/bin/env python3
"""Writes identity.json: fingerprint and full hash of models, digest of adapters, from the files alone, as docs/formats.md says.

Usage: identity.py MODEL.gguf ... ADAPTER_FOLDER ... > identity.json
"""
import json, sys
from hashlib import sha256
from pathlib import Path
from struct import pack
import gguf, numpy
from safetensors.numpy import load_file

MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
MODULES |= {f"attn_{m}": f"self_attn.{m[0]}_proj" for m in ("q", "k", "v", "output")} | {f"ffn_{m}": f"mlp.{m}_proj" for m in ("gate", "up", "down")}
BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
listed = lambda texts: sha256(b"".join(pack("<Q", len(text)) + text for text in map(str.encode, texts))).hexdigest()
numbers = lambda kind, values: sha256(pack(f"<{len(values)}{kind}", *values)).hexdigest()
bits = lambda number: pack(">f", number).hex()
tensor = lambda kind, shape, data: f"{kind} {'x'.join(map(str, shape))} {sha256(data).hexdigest()}"

def name(tag, pairs):  # None and False are neutral
    said = {key: "true" if value is True else str(value) for key, value in pairs.items() if value is not None and value is not False}
    return f"{tag}:{listed([tag] + [text for pair in sorted(said.items()) for text in pair])}"

def base(path, tag, full):
    reader = gguf.GGUFReader(path)
    keys, tensors = {key: field.contents() for key, field in reader.fields.items()}, {t.name.removesuffix(".weight"): t for t in reader.tensors}
    llama = lambda key, default=None: keys.get(f"llama.{key}", default)
    token = lambda key, default=None: keys.get(f"tokenizer.ggml.{key}", default)
    hidden, heads, spm = llama("embedding_length"), llama("attention.head_count"), token("model") == "llama"
    kv, types, adds_bos = llama("attention.head_count_kv", heads), token("token_type"), spm or token("pre") in BOS_BY_DEFAULT
    stretch = (llama("rope.scaling.factor") or llama("rope.scale_linear") or 1) if llama("rope.scaling.type") != "none" else 1
    config = dict(model_type="llama", hidden_size=hidden, intermediate_size=llama("feed_forward_length"), num_hidden_layers=llama("block_count"), num_attention_heads=heads,
                  num_key_value_heads=kv, head_dim=llama("attention.key_length", hidden // heads), vocab_size=tensors["token_embd"].shape[1], tie_word_embeddings="output" not in tensors,
                  rms_norm_eps=bits(llama("attention.layer_norm_rms_epsilon")), rope_theta=bits(llama("rope.freq_base", 1e4)))
    config |= {"rope_scaling.rope_type": "linear", "rope_scaling.factor": bits(stretch)} if stretch != 1 else {}
    tokenizer = dict(model=token("model"), pre=None if spm or token("pre") == "default" else token("pre"), tokens=listed(token("tokens")), merges=listed(token("merges")) if not spm and token("merges") else None,
                     scores=numbers("f", token("scores")) if spm and token("scores") else None, token_type=numbers("i", types) if types else None, unknown_token_id=token("unknown_token_id") if spm else None,
                     padding_token_id=None if types else token("padding_token_id"), add_bos_token=token("add_bos_token", adds_bos and token("bos_token_id") is not None),
                     add_eos_token=token("add_eos_token"), add_space_prefix=spm and token("add_space_prefix", True), **{key: token(key) for key in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id")})
    pairs = {f"config.{key}": value for key, value in config.items()} | {f"tokenizer.{key}": value for key, value in tokenizer.items()}
    pairs["chat_template"] = keys.get("tokenizer.chat_template") or None
    for stem, t in tensors.items():
        (*layer, module), kind, shape = stem.split("."), t.tensor_type.name, [int(n) for n in reversed(t.shape)]
        rows = numpy.ascontiguousarray(t.data).view(numpy.uint8).reshape(int(numpy.prod(shape[:-1])), -1)
        if module in ("attn_q", "attn_k"):  # llama files interleave the halves of each head
            rows = rows.reshape(heads if module == "attn_q" else kv, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        data = rows.tobytes() if full else b"".join(rows[row, :1024].tobytes() for row in (0, len(rows) // 2, len(rows) - 1))
        if module in MODULES:
            pairs[f"tensor.{f'model.layers.{layer[1]}.' if layer else ''}{MODULES[module]}.weight"] = tensor(kind, shape, data)
        elif module == "rope_freqs" and (t.data != 1).any():
            pairs["config.rope_scaling.rope_freqs"] = tensor(kind, shape, rows.tobytes())
    return name(tag, pairs)

def adapter(folder):  # without alpha_pattern
    config, pairs = json.loads((folder / "adapter_config.json").read_text()), {}
    for key, factor in load_file(folder / "adapter_model.safetensors").items():
        path, which = key.removeprefix("base_model.model.").removesuffix(".weight").replace("lora_embedding_", "lora_").rsplit(".lora_", 1)
        r = factor.shape[0 if which == "A" else 1]
        pairs[f"{path}.lora_{which}"] = tensor("F32", factor.shape, factor.astype("<f4").tobytes())
        pairs[f"{path}.scaling"] = bits(config["lora_alpha"] / (r ** 0.5 if config.get("use_rslora") else r))
    return name("epiphyte.factors.1", pairs)

model = lambda path: {"fingerprint": base(path, "epiphyte.base.1", False), "full_hash": base(path, "epiphyte.base-full.1", True)}
print(json.dumps({path.name: {"digest": adapter(path)} if path.is_dir() else model(path) for path in map(Path, sys.argv[1:])}, indent=1))
