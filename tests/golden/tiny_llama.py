"""Write tiny random llama models in mixed types, one a kind of RoPE: tiny_llama{,_linear,_llama3}.gguf

usage: tiny_llama.py            also writes build/<stem>.safetensors, the dequantised weights that transformers_logits.py reads

Grouped queries (4 heads on 2), heads wider than hidden / heads, and a byte-level vocabulary with a few merges. The first model has
two layers and its own output head; the others have one layer and share the embedding.
"""
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

from exact_forward import Llama

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, CONTEXT, EPS, THETA = 64, 4, 2, 32, 96, 256, 1e-5, 10000.0
TOKENS = 32  # length of the input whose logits are golden
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = "Ġ t|h e|i n|r e|o n|Ġt he|e r|a t|Ġ a|e n|Ġ s|o u|Ġ w|n d|i t|e s|o r|Ġ o|i s|in g|Ġ c|Ġ b|a n|e d|Ġ f|a l|Ġ p|Ġ m|a r".split("|")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
MODELS = {
    "tiny_llama": {"layers": 2, "tied": False, "scaling": None},
    "tiny_llama_linear": {"layers": 1, "tied": True, "scaling": {"rope_type": "linear", "factor": 4.0}},
    "tiny_llama_llama3": {"layers": 1, "tied": True, "scaling": LLAMA3},
}
# name in the file, HF module, rows, columns, type
LINEARS = [
    ("attn_q", "self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN, Type.Q4_0),
    ("attn_k", "self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN, Type.Q4_1),
    ("attn_v", "self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN, Type.F16),
    ("attn_output", "self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM, Type.Q4_1),
    ("ffn_gate", "mlp.gate_proj", FFN, HIDDEN, Type.Q4_0),
    ("ffn_up", "mlp.up_proj", FFN, HIDDEN, Type.Q5_1),
    ("ffn_down", "mlp.down_proj", HIDDEN, FFN, Type.Q8_0),
]
here = Path(__file__).parent


def byte_alphabet():
    """The printable stand-in of each byte in GPT-2's vocabulary, in byte order."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + rest.index(b)) for b in range(256)]


VOCAB = [*SPECIAL, *byte_alphabet(), *(pair.replace(" ", "") for pair in MERGES)]


def llama3_divisors(scaling):
    """What each frequency is divided by: nothing for short waves, `factor` for long ones, a blend between."""
    wave = 2 * np.pi * THETA ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = scaling["original_max_position_embeddings"] / wave
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def metadata(writer, layers, scaling):
    writer.add_context_length(CONTEXT), writer.add_embedding_length(HIDDEN), writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN), writer.add_head_count(HEADS), writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM), writer.add_value_length(HEAD_DIM), writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(EPS), writer.add_rope_freq_base(THETA), writer.add_vocab_size(len(VOCAB))
    if scaling and scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2"), writer.add_token_list(VOCAB)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCAB) - len(SPECIAL))), writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0), writer.add_eos_token_id(2), writer.add_add_bos_token(False)


def write_model(stem, layers, tied, scaling):
    rng = np.random.default_rng(list(stem.encode()))
    writer = gguf.GGUFWriter(here / f"{stem}.gguf", "llama")
    metadata(writer, layers, scaling)

    def matrix(name, rows, columns, kind, std):
        values = (rng.standard_normal((rows, columns)) * std).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(f"{name}.weight", (1 + 0.2 * rng.standard_normal(HIDDEN)).astype(np.float32))

    matrix("token_embd", len(VOCAB), HIDDEN, Type.Q4_0, 1.0)
    for layer in range(layers):
        norm(f"blk.{layer}.attn_norm"), norm(f"blk.{layer}.ffn_norm")
        for name, _, rows, columns, kind in LINEARS:
            matrix(f"blk.{layer}.{name}", rows, columns, kind, columns**-0.5)
    norm("output_norm")
    if not tied:
        matrix("output", len(VOCAB), HIDDEN, Type.Q4_1, HIDDEN**-0.5)
    if scaling and scaling["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(scaling))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def unpermute(weight):
    """Rows from llama.cpp's neighbouring pairs to transformers' two halves of a head."""
    return weight.reshape(-1, HEAD_DIM // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_for_transformers(stem, layers, tied, scaling):
    model = Llama(here / f"{stem}.gguf")
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(layers):
        names |= {f"blk.{layer}.{name}": f"model.layers.{layer}.{module}" for name, module, *_ in LINEARS}
        names |= {f"blk.{layer}.attn_norm": f"model.layers.{layer}.input_layernorm"}
        names |= {f"blk.{layer}.ffn_norm": f"model.layers.{layer}.post_attention_layernorm"}
    tensors = {}
    for name, module in names.items():
        if f"{name}.weight" in model.weights:
            weight = model.weights[f"{name}.weight"]
            rotated = name.endswith(("attn_q", "attn_k"))
            tensors[f"{module}.weight"] = np.ascontiguousarray(unpermute(weight) if rotated else weight)
    ids = np.random.default_rng(7).integers(0, len(VOCAB), TOKENS)
    config = {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "intermediate_size": FFN, "num_hidden_layers": layers, "vocab_size": len(VOCAB), "rms_norm_eps": EPS,
        "rope_theta": THETA, "rope_scaling": scaling, "max_position_embeddings": CONTEXT, "tie_word_embeddings": tied,
    }  # fmt: skip
    extra = {"ids": ids, "exact_logits": model.forward(ids)}
    (here / "build").mkdir(exist_ok=True)
    save_file(tensors | extra, here / "build" / f"{stem}.safetensors", metadata={"config": json.dumps(config)})


if __name__ == "__main__":
    for stem, model in MODELS.items():
        write_model(stem, **model)
        write_for_transformers(stem, **model)
        print(stem, (here / f"{stem}.gguf").stat().st_size, "bytes")
