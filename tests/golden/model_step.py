"""Gradients and two steps of AdamW on the default model by PEFT and torch, in f64: model_step.safetensors

usage: model_step.py MODEL.gguf [OUT]        needs torch, transformers, peft, safetensors, gguf; OUT is this folder unless given

The factors are drawn from SplitMix64, module by module, A before B, so that tests/train/default_model.rs draws the same. The batch
is the first TOKENS ids of moby_dick.txt. Holds `ids` [T] i64, `weights` [T] f32, `losses` and `norms` [STEPS] f64 (loss and norm of
the gradient before each step), and of each factor's first gradient `<module path>.lora_{A,B}` [1 + PROJECTIONS] f64: its norm, and
its sums under random signs. The squared difference of two such sums is, on average, that of the whole gradients.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS, STEPS, PROJECTIONS, RANK, ALPHA = 64, 2, 16, 4, 8
SIZE = {"lora_A": 2.0**-5, "lora_B": 2.0**-6}
FACTORS_SEED, SIGNS_SEED = 11, 12
MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
here = Path(__file__).parent


class Random:
    """SplitMix64 (Steele et al. 2014)."""

    def __init__(self, seed):
        self.state = seed

    def bits(self, n):
        gamma = 0x9E3779B97F4A7C15
        z = np.uint64(self.state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(gamma)
        self.state = (self.state + n * gamma) % 2**64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    def signed(self, shape, size):
        """Uniform in [-size, size), exact in f32 where size is a power of two."""
        high = (self.bits(int(np.prod(shape))) >> np.uint64(40)).astype(np.float64)
        return torch.from_numpy((high / 2**23 - 1) * size).reshape(shape)

    def signs(self, n):
        """[PROJECTIONS, n]: the low bits of n draws."""
        bits = self.bits(n)
        rows = [(bits >> np.uint64(i)) & np.uint64(1) for i in range(PROJECTIONS)]
        return torch.from_numpy(1.0 - 2.0 * np.stack(rows).astype(np.float64))


def unpermute(weight, head_dim):
    """Rows from llama.cpp's neighbouring pairs to transformers' two halves of a head."""
    return weight.reshape(-1, head_dim // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def base(path):
    reader = GGUFReader(path)
    field = lambda name: reader.fields[f"llama.{name}"].contents()
    layers, heads, hidden = field("block_count"), field("attention.head_count"), field("embedding_length")
    config = LlamaConfig(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=field("attention.head_count_kv"),
        intermediate_size=field("feed_forward_length"), num_hidden_layers=layers, vocab_size=field("vocab_size"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"), rope_theta=field("rope.freq_base"),
        max_position_embeddings=field("context_length"), tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer in range(layers):
        names |= {f"blk.{layer}.{name}": f"model.layers.{layer}.{module}" for name, module in (MODULES | NORMS).items()}
    weights = {names[t.name.removesuffix(".weight")]: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    rotated = lambda name: name.endswith(("q_proj", "k_proj"))
    tensors = {
        f"{name}.weight": torch.from_numpy((unpermute(w, hidden // heads) if rotated(name) else w).astype(np.float64))
        for name, w in weights.items()
    }
    model = LlamaForCausalLM(config).double()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model


def adapted(path):
    """The model and its factors, by layer, in the order of MODULES."""
    targets = [module.split(".")[1] for module in MODULES.values()]
    model = get_peft_model(base(path), LoraConfig(target_modules=targets, r=RANK, lora_alpha=ALPHA)).double()
    parameters, random, factors = dict(model.named_parameters()), Random(FACTORS_SEED), {}
    for layer in range(model.config.num_hidden_layers):
        for module in MODULES.values():
            for factor, size in SIZE.items():
                name = f"model.layers.{layer}.{module}.{factor}"
                parameter = parameters[f"base_model.model.{name}.default.weight"]
                parameter.data = random.signed(tuple(parameter.shape), size)
                factors[name] = parameter
    assert {name for name, p in parameters.items() if p.requires_grad} == {f"base_model.model.{n}.default.weight" for n in factors}
    return model, factors


def main():
    torch.use_deterministic_algorithms(True)
    ids = torch.tensor(json.loads((here / "tokens.json").read_text())["moby_dick"][:TOKENS])
    weights = (torch.arange(TOKENS) % 5) / 4
    weights[: TOKENS // 4] = 0
    model, factors = adapted(sys.argv[1])
    optimizer = torch.optim.AdamW(list(factors.values()), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    golden, losses, norms, random = {"ids": ids, "weights": weights}, [], [], Random(SIGNS_SEED)
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = model(input_ids=ids[None]).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        loss = (weights[1:].double() * each).sum() / weights[1:].double().sum()
        loss.backward()
        if step == 0:
            for name, parameter in factors.items():
                gradient = parameter.grad.flatten()
                golden[name] = torch.cat([gradient.norm()[None], random.signs(len(gradient)) @ gradient])
        norms.append(torch.nn.utils.clip_grad_norm_(list(factors.values()), 1.0).item())
        losses.append(loss.item())
        optimizer.step()
    print("losses", losses, "norms", norms)
    golden |= {"losses": torch.tensor(losses, dtype=torch.float64), "norms": torch.tensor(norms, dtype=torch.float64)}
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else here
    save_file(golden, out / "model_step.safetensors")


if __name__ == "__main__":
    main()
