"""Logits of tiny_llama under adapters of PEFT, in f64: peft_logits/<name>/ as PEFT saves them, peft_logits.safetensors

usage: peft_logits.py [OUT]       needs torch, transformers, peft, safetensors; run tiny_llama.py first; OUT is this folder unless given

Holds `ids` [T] i64 and, for each adapter and for MIXED, `<name>.logits` [T, vocab_size] f32. (transformers turns positions, norms
and softmax in f32 even here.)
"""
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from transformers_logits import here, load

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEVEN = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
TOKENS = 40
ADAPTERS = {
    "plain": {"target_modules": SEVEN, "r": 4, "lora_alpha": 8},
    "rslora": {"target_modules": SEVEN, "r": 3, "lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "target_modules": SEVEN,
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"v_proj": 3, "layers.0.mlp.up_proj": 11},
    },
    "regex": {"target_modules": r"model\.layers\.\d\.(self_attn\.[qv]|mlp\.down)_proj", "r": 5, "lora_alpha": 7},
    "attention": {"target_modules": ATTENTION, "r": 4, "lora_alpha": 4},
    "all_linear": {"target_modules": "all-linear", "r": 2, "lora_alpha": 4},
}
# Both at once, each multiplied by its weight.
MIXED = {"patterns": 0.7, "attention": -0.4}
NOTICEABLE = 0.05  # of the largest logit: what an adapter must change for the comparison to say something


def base():
    return load(here / "build" / "tiny_llama.safetensors")[0]


def write(folder, kwargs):
    model = get_peft_model(base().float(), LoraConfig(**kwargs, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) / 8
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def adapted(out, weights):
    """The base under the adapters that were written, as PEFT reads them."""
    model = None
    for name in weights:
        if model is None:
            model = PeftModel.from_pretrained(base(), out / name, adapter_name=name)
        else:
            model.load_adapter(out / name, adapter_name=name)
    model.base_model.set_adapter(list(weights))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.scaling:
                module.scaling[name] *= weights[name]
    return model.double().eval()


def main():
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(3)
    out = (Path(sys.argv[1]) if len(sys.argv) > 1 else here) / "peft_logits"
    for name, kwargs in ADAPTERS.items():
        write(out / name, kwargs)
    ids = torch.randint(0, base().config.vocab_size, (TOKENS,))
    golden = {"ids": ids}
    with torch.no_grad():
        plain = base().eval()(input_ids=ids[None]).logits[0]
        for name, weights in {**{name: {name: 1.0} for name in ADAPTERS}, "mixed": MIXED}.items():
            logits = adapted(out, weights)(input_ids=ids[None]).logits[0]
            changed = ((logits - plain).abs().max() / logits.abs().max()).item()
            print(f"{name}: {logits.dtype}, changes up to {changed:.2f} of the largest logit")
            assert changed > NOTICEABLE
            golden[f"{name}.logits"] = logits.float().contiguous()
    save_file(golden, out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
