"""Gradients and steps of AdamW by PEFT and torch, in f64: train_step/ (the adapter before them), train_step.safetensors

usage: train_step.py [OUT]        needs torch, transformers, peft, safetensors, gguf; OUT is this folder unless given

Three models of the same sizes, whose every matrix is of one type: the bytes are drawn from SplitMix64, so that tests/train/golden.rs
draws the same. Holds `<i>.ids` [T] i64 and `<i>.weights` [T] f32 of each sequence: the loss is the mean of the cross-entropies of
predicting each token from those before it, by these weights. For each type, `<type>.loss` [1] f64, the gradients
`<type>.<module path>.lora_{A,B}` f32, `<type>.{losses,norms}` [STEPS] f64: loss and norm of the gradient before each step, and
`<type>.moved.<module path>.lora_{A,B}` f32: how far all the steps together moved the factors. Of the first type the last three also
as `<type>.<variant>.…`: with A or B frozen (`freeze_a`, `freeze_b`; what is frozen is left out) and with a proximal term (`proximal`:
losses are without it, norms with it).
"""
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import dequantize
from gguf.constants import GGML_QUANT_SIZES
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 256, 4, 2, 64, 512, 2, 288
# module, rows, columns
LINEARS = [
    ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
    ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
    ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
    ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
    ("mlp.gate_proj", FFN, HIDDEN),
    ("mlp.up_proj", FFN, HIDDEN),
    ("mlp.down_proj", HIDDEN, FFN),
]
# The type, the second f16 of a block in parts of the first, and about how much a block's scales
# multiply by, as a power of two.
TYPES = {"q4_0": (Type.Q4_0, None, 0), "q4_1": (Type.Q4_1, -7, 0), "q4_k": (Type.Q4_K, 7, 6)}
LENGTHS = [10, 14]
STEPS = 10
# What is frozen, and FedProx's mu.
VARIANTS = {"freeze_a": ("lora_A", 0), "freeze_b": ("lora_B", 0), "proximal": (None, 0.5)}
here = Path(__file__).parent


def random_bytes(seed, n):
    """The low bytes of SplitMix64 (Steele et al. 2014)."""
    z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).astype(np.uint8)


def matrix(seed, name, rows, columns, exponent):
    """Random weights [rows, columns] of about 440 / 2^exponent; every scale is exact in f16."""
    kind, second, scales = TYPES[name]
    length, size = GGML_QUANT_SIZES[kind]
    raw = random_bytes(seed, rows * columns // length * size).reshape(-1, size)
    d = (64 + (raw[:, 0] >> 2)) * 2.0 ** -(exponent + scales)
    for at, value in [(0, d)] if second is None else [(0, d), (2, second * d)]:
        assert (value == value.astype(np.float16)).all()
        raw[:, at : at + 2] = value.astype("<f2").view(np.uint8).reshape(-1, 2)
    return torch.from_numpy(dequantize(raw.reshape(rows, -1), kind).astype(np.float64))


def unpermute(weight):
    """Rows from llama.cpp's neighbouring pairs to transformers' two halves of a head."""
    return weight.reshape(-1, HEAD_DIM // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def base(name):
    config = LlamaConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, intermediate_size=FFN,
        num_hidden_layers=LAYERS, vocab_size=VOCAB, rms_norm_eps=1e-5, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    gain = torch.from_numpy(np.float32(0.5) + (np.arange(HIDDEN) % 7).astype(np.float32) / np.float32(6)).double()
    tensors = {"model.embed_tokens.weight": matrix(0, name, VOCAB, HIDDEN, 12), "model.norm.weight": gain}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for i, (module, rows, columns) in enumerate(LINEARS):
            weight = matrix(1 + layer * len(LINEARS) + i, name, rows, columns, 13)
            rotated = module.endswith(("q_proj", "k_proj"))
            tensors[f"{prefix}.{module}.weight"] = unpermute(weight) if rotated else weight
        tensors |= {f"{prefix}.{norm}_layernorm.weight": gain for norm in ["input", "post_attention"]}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def write(folder):
    """The adapter that training starts from; its B is not zero."""
    targets = [module.split(".")[1] for module, *_ in LINEARS]
    model = get_peft_model(base("q4_0").float(), LoraConfig(target_modules=targets, r=4, lora_alpha=8, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * (1 / 16 if "lora_A" in name else 0.05)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def batch():
    for length in LENGTHS:
        weights = torch.randint(0, 5, (length,)) / 4
        weights[::3] = 0  # the first among them: nothing comes before it
        yield torch.randint(0, VOCAB, (length,)), weights


def loss_of(model, sequences):
    """Each sequence by itself: none sees another."""
    total = 0
    for ids, weights in sequences:
        logits = model(input_ids=ids[None]).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        total = total + (weights[1:].double() * each).sum()
    return total / sum(weights.double().sum() for _, weights in sequences)


def train(name, folder, sequences, variant=None):
    frozen, mu = VARIANTS.get(variant, (None, 0))
    model = PeftModel.from_pretrained(base(name), folder, is_trainable=True).double()
    factors = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(factors) == 2 * len(LINEARS) * LAYERS and all("lora_" in key for key in factors)
    for key in [key for key in factors if frozen and frozen in key]:
        factors.pop(key).requires_grad = False
    optimizer = torch.optim.AdamW(list(factors.values()), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    golden, losses, norms = {}, [], []
    path = lambda key: key.removeprefix("base_model.model.").replace(".default.weight", "")
    first = {key: parameter.detach().clone() for key, parameter in factors.items()}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, sequences)
        (loss + mu / 2 * sum(((parameter - first[key]) ** 2).sum() for key, parameter in factors.items())).backward()
        if step == 0 and not variant:
            for key, parameter in factors.items():
                golden[f"{name}.{path(key)}"] = parameter.grad.float().contiguous()
        norms.append(torch.nn.utils.clip_grad_norm_(list(factors.values()), 1.0).item())
        losses.append(loss.item())
        optimizer.step()
    name = f"{name}.{variant}" if variant else name
    for key, parameter in factors.items():
        golden[f"{name}.moved.{path(key)}"] = (parameter.detach() - first[key]).float().contiguous()
    print(name, "losses", losses, "norms", norms)
    if not variant:
        golden[f"{name}.loss"] = torch.tensor(losses[:1], dtype=torch.float64)
    golden[f"{name}.losses"] = torch.tensor(losses, dtype=torch.float64)
    golden[f"{name}.norms"] = torch.tensor(norms, dtype=torch.float64)
    return golden


def main():
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(5)
    out = (Path(sys.argv[1]) if len(sys.argv) > 1 else here) / "train_step"
    write(out)
    sequences = list(batch())
    golden = {f"{i}.{key}": value for i, pair in enumerate(sequences) for key, value in zip(["ids", "weights"], pair)}
    for name in TYPES:
        golden |= train(name, out, sequences)
    for variant in VARIANTS:
        golden |= train("q4_0", out, sequences, variant)
    save_file(golden, out.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
