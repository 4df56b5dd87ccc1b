"""Rotary frequencies by transformers: config.json's keys of each scaling -> rope.json

usage: rope.py     needs torch, transformers

`frequencies` are radians a token; `scale` is what cosines and sines are multiplied by; `positions`, where it is said, is the length of
the text.
"""
import json
from pathlib import Path

from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, all said": {
        "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "beta_fast": 24.0, "beta_slow": 2.0, "attention_factor": 1.125,
    },
    "yarn, short": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "original_max_position_embeddings": 4096,
    "short_factor": [1 + i / 64 for i in range(48)], "long_factor": [1 + i * i / 32 for i in range(48)],
}  # fmt: skip
# Text length, share of the head that is rotated (of 128 and 96 dimensions), more.
LONG_CASES = [(4096, 0.75, {}), (4097, 0.75, {}), (8192, 1.0, {"attention_factor": 1.25}), (100, 1.0, {"factor": 8.0})]
SHAPES = [(64, 10000.0), (128, 1000000.0)]


def main():
    golden = []
    for name, rope in CASES.items():
        for head_dim, theta in SHAPES:
            config = {
                "model_type": "llama", "vocab_size": 64, "hidden_size": 2 * head_dim, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head_dim, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 65536, "rope_parameters": {**rope, "rope_theta": theta},
            }  # fmt: skip
            frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](LlamaConfig(**config), "cpu")
            golden.append({"name": name, "config": config, "frequencies": frequencies.tolist(), "scale": float(scale)})
    for positions, share, more in LONG_CASES:
        head_dim = int(96 / share)
        config = {
            "model_type": "phi3", "vocab_size": 64, "hidden_size": 2 * head_dim, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096, "rope_theta": 10000.0, "partial_rotary_factor": share, "rope_scaling": {**LONG, **more},
        }  # fmt: skip
        frequencies, scale = ROPE_INIT_FUNCTIONS["longrope"](Phi3Config(**json.loads(json.dumps(config))), "cpu", seq_len=positions)
        entry = {"name": f"longrope, {positions}", "config": config, "positions": positions}
        golden.append({**entry, "frequencies": frequencies.tolist(), "scale": float(scale)})
    lines = ",\n".join(json.dumps(entry) for entry in golden)
    (Path(__file__).parent / "rope.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
