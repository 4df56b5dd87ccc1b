"""Ask PEFT what its configs mean, and have it write adapters.

usage: peft_config.py OUT [ADAPTER ...]      needs torch, transformers, peft and safetensors; no GPU, no network

OUT/peft.json     cases: the config as PEFT saves it before and after it meets the model, and {module path: [r, scaling]} or the error
OUT/peft_<name>/  adapters as PEFT saves them, for a base of tiny_llama's sizes; what they add to each module is in peft.json
ADAPTER           folders that the runtime wrote for that base: PEFT loads each strictly and prints what it adds to each module
"""
import json
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 37}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 291}

CASES = {
    "default_targets": {},
    "list": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
    "list_seven": {"target_modules": SEVEN, "r": 3, "lora_alpha": 7},
    "list_with_dots": {"target_modules": ["self_attn.q_proj", "1.mlp.up_proj"], "r": 4},
    "list_full_path": {"target_modules": ["model.layers.1.self_attn.q_proj", "down_proj"], "layers_to_transform": [2], "r": 4},
    "list_one_unknown": {"target_modules": ["q_proj", "fc1"], "r": 4},
    "list_part_of_name": {"target_modules": ["proj", "q_proj"], "r": 4},
    "embed_and_head": {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "r": 4, "lora_alpha": 2},
    "regex": {"target_modules": r".*\.(q|k)_proj", "r": 4},
    "regex_layers": {"target_modules": r"model\.layers\.(1|11)\.(self_attn|mlp)\.(o|gate)_proj", "r": 4},
    "regex_not_whole": {"target_modules": r"layers\.1\.self_attn\.q_proj|.*down_proj", "r": 4},
    "regex_flags_and_classes": {"target_modules": r"(?i:MODEL)\.layers\.[0-3]\.\w+\.[^kv]_proj", "r": 4},
    "all_linear": {"target_modules": "all-linear", "r": 4},
    "all_linear_case": {"target_modules": "All-Linear", "r": 4},
    "all_linear_exclude": {"target_modules": "all-linear", "exclude_modules": ["down_proj", "model.layers.0.self_attn.q_proj"], "r": 4},
    "exclude_list": {"target_modules": SEVEN, "exclude_modules": ["1.self_attn.k_proj", "mlp.up_proj"], "r": 4},
    "exclude_regex": {"target_modules": SEVEN, "exclude_modules": r".*layers\.(?:[02468]|10)\..*", "r": 4},
    "exclude_part": {"target_modules": SEVEN, "exclude_modules": r"self_attn", "r": 4},
    "exclude_empty": {"target_modules": ["q_proj"], "exclude_modules": [], "r": 4},
    "layers_list": {"target_modules": ["q_proj", "up_proj", "lm_head"], "layers_to_transform": [0, 2, 11], "r": 4},
    "layers_int": {"target_modules": ["q_proj"], "layers_to_transform": 1, "r": 4},
    "layers_zero": {"target_modules": ["q_proj"], "layers_to_transform": 0, "r": 4},
    "layers_empty": {"target_modules": ["q_proj"], "layers_to_transform": [], "r": 4},
    "layers_past_the_end": {"target_modules": ["q_proj"], "layers_to_transform": [3, 99, -1], "r": 4},
    "layers_pattern": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers", "r": 4},
    "layers_pattern_list": {"target_modules": ["q_proj"], "layers_to_transform": [1, 5], "layers_pattern": ["h", "layers"], "r": 4},
    "layers_pattern_path": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": r"model\.layers", "r": 4},
    "layers_pattern_part": {"target_modules": ["q_proj", "model.layers.4.mlp.up_proj"], "layers_to_transform": [1], "layers_pattern": "ayers", "r": 4},
    "layers_pattern_alternation": {"target_modules": ["q_proj", "model.layers.4.mlp.up_proj"], "layers_to_transform": [1], "layers_pattern": "h|layers", "r": 4},
    "layers_pattern_empty": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": [], "r": 4},
    "layers_pattern_alone": {"target_modules": ["q_proj"], "layers_pattern": "layers", "r": 4},
    "layers_with_regex": {"target_modules": ".*q_proj", "layers_to_transform": [1], "r": 4},
    "layers_pattern_with_regex": {"target_modules": ".*q_proj", "layers_pattern": "layers", "r": 4},
    "rank_pattern": {"target_modules": SEVEN, "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 5}, "r": 4, "lora_alpha": 8},
    "rank_pattern_part": {"target_modules": SEVEN, "rank_pattern": {"proj": 2, "attn.q_proj": 3, "layers.1": 5}, "r": 4},
    "rank_pattern_order": {"target_modules": SEVEN, "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 3, "self_attn.q_proj": 5}, "r": 4},
    "rank_pattern_order_reversed": {"target_modules": SEVEN, "rank_pattern": {"self_attn.q_proj": 5, "q_proj": 3, "layers.1.self_attn.q_proj": 2}, "r": 4},
    "rank_pattern_caret": {"target_modules": SEVEN, "rank_pattern": {"^model.layers.1.mlp.up_proj": 2, "^layers.2.mlp.up_proj": 3, "^q_proj": 5}, "r": 4},
    "rank_pattern_regex": {"target_modules": SEVEN, "rank_pattern": {r".*\.layers\.\d\.mlp\..*": 2, "(k|v)_proj": 3, "q_proj|o_proj": 6}, "r": 4},
    "rank_pattern_dots": {"target_modules": SEVEN, "rank_pattern": {"layers.1.mlp.up_proj": 2, "layers.1.self_attn.q.proj": 3}, "r": 4},
    "alpha_pattern": {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 32, "layers.1.self_attn.q_proj": 3}, "r": 4, "lora_alpha": 8},
    "alpha_and_rank": {"target_modules": SEVEN, "rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"q_proj": 5, "(up|down)_proj": 3}, "r": 4, "lora_alpha": 8},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True, "r": 3, "lora_alpha": 7},
    "rslora_patterns": {"target_modules": SEVEN + ["embed_tokens"], "use_rslora": True, "rank_pattern": {"q_proj": 2, "embed_tokens": 5}, "alpha_pattern": {"q_proj": 5}, "r": 3},
    "float_alpha": {"target_modules": ["q_proj"], "r": 6, "lora_alpha": 0.1},
    "zero_alpha": {"target_modules": ["q_proj"], "r": 6, "lora_alpha": 0},
    "zero_rank": {"target_modules": ["q_proj"], "r": 0},
    "rank_above_width": {"target_modules": ["q_proj"], "r": 100},
    "fan_in_fan_out": {"target_modules": ["q_proj"], "fan_in_fan_out": True, "r": 4},
    "nothing_matches": {"target_modules": ["fc1"], "r": 4},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "r": 4},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4},
}

# name: LoraConfig, type of the tensors
ADAPTERS = {
    "peft_seven": ({"target_modules": SEVEN, "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}, torch.float32),
    "peft_patterns": (
        {
            "target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"],
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
            "alpha_pattern": {"lm_head": 3},
            "r": 3,
            "lora_alpha": 4,
            "task_type": "CAUSAL_LM",
        },
        torch.bfloat16,
    ),
}


def base(sizes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))


def saved(config):
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return json.loads((Path(folder) / "adapter_config.json").read_text())


def lora_layers(model):
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
    return {name.removeprefix("base_model.model."): module for name, module in layers}


def case(kwargs):
    out = {"given": kwargs}
    try:
        config = LoraConfig(**kwargs)
        out["before"] = saved(config)
        model = get_peft_model(base(WIDE), config)
        out["after"] = saved(model.peft_config["default"])
        out["modules"] = {name: [module.r["default"], module.scaling["default"]] for name, module in lora_layers(model).items()}
    except (ValueError, TypeError, KeyError) as error:
        out["error"] = f"{type(error).__name__}: {error}"[:200]
    return out


def added(model):
    """What LoRA adds to each weight [N, K]: its sum, its sum of squares, the entry [1, 2]. An embedding's is [D, V] here."""
    out = {}
    for name, module in lora_layers(model).items():
        a, b = module.lora_A, module.lora_B
        if "default" in a:
            a, b = a["default"].weight, b["default"].weight
        else:
            a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
        delta = b.double() @ a.double() * module.scaling["default"]
        out[name] = [delta.sum().item(), (delta**2).sum().item(), delta[1, 2].item()]
    return out


def write(out, name, kwargs, dtype):
    model = get_peft_model(base(TINY).to(dtype), LoraConfig(**kwargs), autocast_adapter_dtype=False)
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = (torch.randn(parameter.shape) / 8).to(dtype)
    model.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    return added(model)


def load(folder):
    model = PeftModel.from_pretrained(base(TINY), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = model.load_adapter(folder, "again")
    assert not result.unexpected_keys, result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key and ".again" in key], result.missing_keys
    return added(model)


def main():
    torch.use_deterministic_algorithms(True)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "versions": {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "sizes": WIDE,
        "tiny_sizes": TINY,
        "cases": {name: case(kwargs) for name, kwargs in CASES.items()},
        "added": {name: write(out, name, *spec) for name, spec in ADAPTERS.items()},
    }
    (out / "peft.json").write_text(json.dumps(report, indent=1) + "\n")
    for folder in sys.argv[2:]:
        print(folder, json.dumps(load(folder), indent=1))


main()
