"""Rotary frequencies by transformers: config.json's keys of each scaling -> rope.json

usage: rope.py     needs torch, transformers

`frequencies` are radians a token; `scale` is what cosines and sines are multiplied by.
"""
import json
from pathlib import Path

from transformers import LlamaConfig
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
    lines = ",\n".join(json.dumps(entry) for entry in golden)
    (Path(__file__).parent / "rope.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
