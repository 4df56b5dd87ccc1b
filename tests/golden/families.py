"""Write a tiny random model of each family, and what transformers and PEFT make of it: families/, families.safetensors

usage: families.py [OUT]       needs torch, transformers, peft, safetensors, gguf; OUT is this folder unless given

transformers makes each model of `FAMILIES` at random. `families/<family>.gguf` holds its matrices in Q4_0, F16 or Q4_K, each module
of a layer in another type, norms and biases in F32; the model then runs on the dequantised weights, in f64. `families/<family>.json`
is its config.json. families.safetensors holds `ids` [T] i64, `weights` [T] f32, and for each family `<family>.logits` [T, vocab] f32,
`<family>.lora` [T, vocab] f32 under the adapter `families/<family>/`, `<family>.losses` [STEPS] f64 before each step of AdamW on
`weights`, and the first gradients as norms and projections: `<family>.norms` [2 modules] f64 and `<family>.projections` f64, against
signs drawn from SplitMix64, in the order of the modules' names, A before B. Where Hugging Face's linears are several of ours (Phi's
qkv_proj, gate_up_proj), the adapter is on theirs, and it is trained as LoRA on each of ours that begins with its A and its rows of B.
`phi4.blocks` are the logits under `families/phi4_blocks/`, LoRA on each of ours written as one on
theirs. Where frequencies depend on the context, `<family>.short` [SHORT, vocab] are the logits within the original one.
"""
import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tiny_llama import MERGES, SPECIAL, VOCAB

COMMON = {
    "vocab_size": len(VOCAB), "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "attn_implementation": "eager",
}  # fmt: skip
WINDOW, SHORT = 40, 48
FAMILIES = {
    "qwen2": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256, "rope_theta": 1e6, "tie_word_embeddings": True, "model_type": "qwen2"},
    "qwen3": {"num_hidden_layers": 2, "head_dim": 32, "rope_theta": 1e6, "tie_word_embeddings": False, "model_type": "qwen3"},
    "gemma3": {
        "model_type": "gemma3_text", "num_hidden_layers": 3, "intermediate_size": 256, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "num_key_value_heads": 1,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "smollm3": {
        "model_type": "smollm3", "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0],
        "rope_theta": 5e6, "tie_word_embeddings": True, "intermediate_size": 32,
    },
    "granite": {
        "model_type": "granite", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.25, "logits_scaling": 8.0, "rope_theta": 1e4, "tie_word_embeddings": True,
    },
    "mistral": {
        "model_type": "mistral", "num_hidden_layers": 2, "head_dim": 32, "sliding_window": WINDOW, "rope_theta": 1e4,
        "tie_word_embeddings": False,
    },
    "phi3": {"model_type": "phi3", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e4, "tie_word_embeddings": False},
    # Like Phi-4-mini: more tokens than its original context, so that the long factors count.
    "phi4": {
        "model_type": "phi3", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256, "tie_word_embeddings": True,
        "rope_theta": 1e4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": SHORT,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1 + i / 16 for i in range(12)], "long_factor": [1 + i * i / 4 for i in range(12)],
        },
    },
}  # fmt: skip
ARCHITECTURE = {"mistral": "llama", "phi4": "phi3"}
INTERLEAVED = ["smollm3", "granite", "mistral"]
# Hugging Face module, GGUF's name; a family's own come first.
NAMES = [
    ("input_layernorm", "attn_norm"), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"), ("self_attn.o_proj", "attn_output"), ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"), ("mlp.gate_up_proj", "ffn_up"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
]  # fmt: skip
GEMMA = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
]
GLOBAL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
SMALL = [Type.Q4_0, Type.F16]
TOKENS, STEPS = 96, 10
here = Path(__file__).parent


def gguf_name(family, module):
    if module in GLOBAL:
        return GLOBAL[module]
    _, _, layer, rest = module.split(".", 3)
    names = dict(NAMES) | (dict(GEMMA) if family == "gemma3" else {})
    return f"blk.{layer}.{names[rest]}"


def permute(weight, heads):
    """Rows from transformers' two halves of a head to llama.cpp's neighbouring pairs."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def metadata(writer, family, config):
    writer.add_context_length(config.max_position_embeddings), writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers), writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads), writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width), writer.add_value_length(width), writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), writer.add_rope_scaling_factor(rope["factor"])
    if family in ["gemma3", "mistral"]:
        writer.add_sliding_window(WINDOW)
    if family == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
    if config.model_type == "phi3":
        writer.add_rope_dimension_count(int(width * rope["partial_rotary_factor"]))
    if rope["rope_type"] == "longrope":
        # As llama.cpp's converter computes it.
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original)))
        for which in ["long", "short"]:
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], dtype=np.float32))
    if family == "granite":
        writer.add_embedding_scale(config.embedding_multiplier), writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier), writer.add_logit_scale(config.logits_scaling)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2"), writer.add_token_list(VOCAB)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCAB) - len(SPECIAL))), writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0), writer.add_eos_token_id(2), writer.add_add_bos_token(False)


def base(family):
    config = COMMON | FAMILIES[family]
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()


def randomise(model):
    """Norms and biases that say something, matrices about as large as trained ones."""
    gemma = "Gemma" in type(model).__name__
    scale = getattr(model.config, "embedding_multiplier", model.config.hidden_size**0.5 if gemma else 1.0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            centre = 1.0 if name.endswith("norm.weight") and not gemma else 0.0
            parameter.data = centre + 0.2 * torch.randn(parameter.shape)
        else:
            std = 1 / scale if "embed_tokens" in name else parameter.shape[1] ** -0.5
            parameter.data = std * torch.randn(parameter.shape)


def write_base(out, family):
    """The model on what its file holds, in f64."""
    model = base(family)
    randomise(model)
    config = model.config
    (out / f"{family}.json").write_text(json.dumps(json.loads(config.to_json_string()), indent=1) + "\n")
    writer = gguf.GGUFWriter(out / f"{family}.gguf", ARCHITECTURE.get(family, family))
    metadata(writer, family, config)
    tensors, matrices = {}, 0
    for name, parameter in model.named_parameters():
        module, part = name.rsplit(".", 1)
        values = parameter.detach().float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.split(".")[-1])
        swapped = family in INTERLEAVED and heads
        stored = np.ascontiguousarray(permute(values, heads) if swapped else values)
        if values.ndim == 1:
            # llama.cpp's files hold 1 + w.
            shifted = stored + 1 if family == "gemma3" else stored
            writer.add_tensor(f"{gguf_name(family, module)}.{part}", shifted.astype(np.float32))
            tensors[name] = parameter.detach().double()
            if family == "gemma3":
                tensors[name] = torch.from_numpy(shifted.astype(np.float32)).double() - 1
            continue
        kind = SMALL[matrices % len(SMALL)]
        if values.shape[1] % 256 == 0 and matrices % 3 != 1:
            kind = Type.Q4_K
        matrices += 1
        raw = quantize(stored, kind)
        writer.add_tensor(f"{gguf_name(family, module)}.weight", raw, raw_dtype=kind)
        back = gguf.dequantize(raw, kind).astype(np.float64).reshape(stored.shape)
        if swapped:
            back = back.reshape(heads, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(back))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return config, tensors


def quantize(values, kind):
    """gguf quantises to Q4_0 and F16; for Q4_K a block's scales are drawn, which is enough here."""
    if kind != Type.Q4_K:
        return gguf.quantize(values, kind)
    rng = np.random.default_rng(int(abs(float(values[0, 0])) * 1e6))
    raw = rng.integers(0, 256, (values.size // 256, 144), dtype=np.uint8)
    d = ((64 + (raw[:, 0] >> 2)) * 2.0**-21).astype("<f2")
    raw[:, :2] = d.view(np.uint8).reshape(-1, 2)
    raw[:, 2:4] = (7 * d.astype(np.float32)).astype("<f2").view(np.uint8).reshape(-1, 2)
    return raw.reshape(values.shape[0], -1)


PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


class Apart(torch.nn.Module):
    """The linears that one of transformers' is, side by side."""

    def __init__(self, linear, names, sizes):
        super().__init__()
        for name, weight in zip(names, linear.weight.split(sizes), strict=True):
            part = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            part.weight.data = weight.data
            setattr(self, name, part)

    def forward(self, x):
        return torch.cat([part(x) for part in self.children()], dim=-1)


def apart(model):
    """The model with its joined linears apart."""
    for layer in model.model.layers:
        for block in [layer.self_attn, layer.mlp]:
            for name in set(PARTS) & set(dict(block.named_children())):
                setattr(block, name, Apart(getattr(block, name), PARTS[name], sizes_of(model.config, name)))
    return model


def sizes_of(config, name):
    width = config.hidden_size // config.num_attention_heads
    kv = config.num_key_value_heads * width
    return [config.num_attention_heads * width, kv, kv] if name == "qkv_proj" else 2 * [config.intermediate_size]


def trainable(family, tensors, folder):
    """The model under the adapter, on our linears, and each of its parameters under our name."""
    model = PeftModel.from_pretrained(load(family, tensors), folder, is_trainable=True).double()
    joined = {key: parameter for key, parameter in model.named_parameters() if "lora_" in key}
    if not any(name in key for key in joined for name in PARTS):
        return model, joined
    config = LoraConfig.from_pretrained(folder)
    config.target_modules, config.inference_mode = "all-linear", False
    model = get_peft_model(apart(load(family, tensors)), config).double()
    factors = {}
    for key, parameter in model.named_parameters():
        if "lora_" not in key:
            continue
        name = next((name for name in PARTS if f".{name}." in key), None)
        if name is None:
            parameter.data, factors[key] = joined[key].data.clone(), parameter
            continue
        part = next(part for part in PARTS[name] if f".{part}." in key)
        whole = joined[key.replace(f".{part}.", ".")].data
        rows = whole if "lora_A" in key else whole.split(sizes_of(model.config, name))[PARTS[name].index(part)]
        parameter.data, factors[key.replace(f".{name}.", ".")] = rows.clone(), parameter
    return model, factors


def load(family, tensors):
    model = base(family).double()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    # Buffers that were made in f32: made again in f64 they would differ from no other f64 pass.
    return model.eval()


def write_adapter(folder, model):
    lora = LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, task_type="CAUSAL_LM")
    model = get_peft_model(model.float(), lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) / 8
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def write_blocks(folder, model):
    """LoRA of rank 4 on each of our linears, as an adapter on transformers': ranks add up, B is made of blocks."""
    ranks = {name: 4 * len(parts) for name, parts in PARTS.items()}
    lora = LoraConfig(
        target_modules=[*PARTS, "o_proj", "down_proj"], r=4, lora_alpha=8, rank_pattern=ranks,
        alpha_pattern={name: 2 * rank for name, rank in ranks.items()}, task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model.float(), lora)
    for key, parameter in model.named_parameters():
        if "lora_" not in key:
            continue
        parameter.data = torch.randn(parameter.shape) / 8
        name = next((name for name in PARTS if f".{name}.lora_B" in key), None)
        if name:
            sizes = sizes_of(model.config, name)
            blocks = torch.block_diag(*[torch.ones(size, 4) for size in sizes])
            parameter.data = torch.where(blocks > 0, parameter.data, 0.0)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def signs(n):
    """From the low bits of SplitMix64 (Steele et al. 2014), seed 0."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(1.0 - 2.0 * ((z ^ (z >> np.uint64(31))) & np.uint64(1)).astype(np.float64))


def train(family, tensors, folder, ids, weights):
    model, factors = trainable(family, tensors, folder)
    optimizer = torch.optim.AdamW(list(factors.values()), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, norms, projections = [], [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = model(input_ids=ids[None]).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        loss = (weights[1:].double() * each).sum() / weights.double().sum()
        loss.backward()
        if step == 0:
            for key in sorted(factors):
                gradient = factors[key].grad.flatten()
                norms.append(gradient.norm().item())
                projections.append((gradient * signs(len(gradient))).sum().item())
        torch.nn.utils.clip_grad_norm_(list(factors.values()), 1.0)
        losses.append(loss.item())
        optimizer.step()
    print(family, "losses", losses[0], losses[-1], "norms", min(norms), max(norms))
    return {"losses": losses, "norms": norms, "projections": projections}


def main():
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(11)
    out = (Path(sys.argv[1]) if len(sys.argv) > 1 else here) / "families"
    out.mkdir(exist_ok=True)
    ids = torch.randint(0, len(VOCAB), (TOKENS,))
    weights = torch.randint(0, 5, (TOKENS,)) / 4
    weights[::3] = 0
    golden = {"ids": ids, "weights": weights}
    for family in FAMILIES:
        _, tensors = write_base(out, family)
        write_adapter(out / family, load(family, tensors))
        with torch.no_grad():
            plain = load(family, tensors)(input_ids=ids[None]).logits[0]
            adapted = PeftModel.from_pretrained(load(family, tensors), out / family).double().eval()
            lora = adapted(input_ids=ids[None]).logits[0]
        changed = ((lora - plain).abs().max() / plain.abs().max()).item()
        print(f"{family}: {plain.dtype}, the adapter changes up to {changed:.2f} of the largest logit")
        assert changed > 0.05
        # Every fourth row keeps the file small.
        if FAMILIES[family].get("original_max_position_embeddings") == SHORT:
            with torch.no_grad():
                golden[f"{family}.short"] = load(family, tensors)(input_ids=ids[None, :SHORT]).logits[0, 3::4].float().contiguous()
        golden |= {f"{family}.logits": plain[3::4].float().contiguous(), f"{family}.lora": lora[3::4].float().contiguous()}
        for key, values in train(family, tensors, out / family, ids, weights).items():
            golden[f"{family}.{key}"] = torch.tensor(values, dtype=torch.float64)
    write_blocks(out / "phi4_blocks", load("phi4", tensors))
    with torch.no_grad():
        model = PeftModel.from_pretrained(load("phi4", tensors), out / "phi4_blocks").double().eval()
        golden["phi4.blocks"] = model(input_ids=ids[None]).logits[0, 3::4].float().contiguous()
    save_file(golden, out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
