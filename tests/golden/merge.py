"""Merge adapters with PEFT itself, and by mergekit's formulas in f64.

usage: merge.py OUT      needs torch, transformers, peft, safetensors and numpy; no GPU, no network

OUT/merge.json          sizes of the base; parents: {path: [rank, scaling]}; cases: parents, weights,
                        recipe (ours), and the paths that the result has
OUT/merge.safetensors   parents: `NAME/PATH/A`, `NAME/PATH/B`; what a case adds: `CASE/PATH`, [N, K]

PEFT runs in f64 on factors that are f32. What it draws by chance for DARE is replaced by the stream
that runtime/merge/random.rs defines; everything else is PEFT's own. With `use_rslora` PEFT's result
is too large by the root of the new rank, which is undone here and nowhere else.
"""
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"hidden_size": 18, "intermediate_size": 26, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6, "vocab_size": 37}
KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens"]
Q, V, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj"
DOWN, UP, EMBED, HEAD = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj", "model.embed_tokens", "lm_head"
PARENTS = {
    "a": {"r": 3, "lora_alpha": 6, "target_modules": [Q, V, DOWN, EMBED]},
    "b": {"r": 3, "lora_alpha": 2, "target_modules": [Q, DOWN, UP]},
    "c": {"r": 3, "lora_alpha": 9, "target_modules": [Q, V, UP, EMBED]},
    "d": {"r": 5, "lora_alpha": 7, "target_modules": [Q, V, Q1, HEAD], "rank_pattern": {"v_proj": 2}},
    "e": {"r": 1, "lora_alpha": 4, "target_modules": [Q, DOWN], "use_rslora": True},
    "f": {"r": 3, "lora_alpha": 5, "target_modules": [Q, V, DOWN], "use_rslora": True},
}
MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def kept(shape, density, seed, parent, path, factor):
    """1 where chance leaves an element; `shape` is the module's own."""
    layer = int(path.split(".")[2]) + 1 if ".layers." in path else 0
    number = layer * 16 + KINDS.index(path.split(".")[-1])
    stream = 0
    for word in (seed, parent, number, factor):
        stream = mix(((stream + STEP) & MASK) ^ word)
    draws = [(mix((stream + i * STEP) & MASK) >> 11) / 2**53 for i in range(shape[0] * shape[1])]
    return (np.array(draws).reshape(shape) < density).astype(np.float64)


def model():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).double()
    made = None
    for name, given in PARENTS.items():
        config = LoraConfig(**given)
        if made is None:
            made = get_peft_model(base, config, adapter_name=name)
        else:
            made.add_adapter(name, config)
    return made.double()


def layers(made):
    for name, layer in made.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def factors(layer, name):
    """A, B of an adapter on a layer, or None."""
    if name in layer.lora_A:
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    return None


def delta(layer, name, path):
    added = layer.get_delta_weight(name).detach().numpy()
    return added.T if path == EMBED else added


def fill(made):
    """Random factors that f32 holds."""
    random = np.random.default_rng(5)
    for path, layer in layers(made):
        for name in PARENTS:
            for factor in factors(layer, name) or ():
                values = random.standard_normal(tuple(factor.shape)).astype(np.float32) * np.float32(0.3)
                factor.data.copy_(torch.from_numpy(values.astype(np.float64)))


def by_peft(made, case):
    """What PEFT's result adds, by path."""
    names, recipe, count = case["parents"], case["recipe"], 0
    options = {}
    if "density" in recipe:
        options["density"] = recipe["density"]
    if "elect" in recipe:
        options["majority_sign_method"] = recipe["elect"]
    if "rank" in recipe:
        options["svd_rank"] = recipe["rank"]["fixed"]
    on_factors = recipe.get("on") == "factors"
    # The order in which PEFT asks for chance.
    places = []
    for path, layer in layers(made):
        mine = [(i, name) for i, name in enumerate(names) if factors(layer, name)]
        places += [(i, path, f) for f in ((1, 2) if on_factors else (0,)) for i, _ in mine]
    draw, places = torch.bernoulli, iter(places)

    def given(chances):
        parent, path, factor = next(places)
        density, turned = float(chances.flatten()[0]), path == EMBED and factor == 0
        shape = tuple(chances.shape)
        mask = kept(shape[::-1] if turned else shape, density, recipe["seed"], parent, path, factor)
        return torch.from_numpy(np.ascontiguousarray(mask.T if turned else mask))

    torch.bernoulli = given
    try:
        made.add_weighted_adapter(names, case["weights"], "merged", combination_type=case["peft"],
                                    svd_full_matrices=False, **options)
    finally:
        torch.bernoulli = draw
    assert not recipe.get("seed") or next(places, None) is None
    out = {}
    for path, layer in layers(made):
        if factors(layer, "merged") and any(factors(layer, name) for name in names):
            rslora = PARENTS[names[0]].get("use_rslora")
            out[path] = delta(layer, "merged", path) / (math.sqrt(layer.r["merged"]) if rslora else 1.0)
    made.delete_adapter("merged")
    return out


def arc(t, a, b):
    unit = lambda v: v / np.linalg.norm(v) if np.linalg.norm(v) > 1e-8 else v
    dot = float(np.sum(unit(a) * unit(b)))
    if abs(dot) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(dot)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def trimmed(d, density):
    if density >= 1:
        return d
    k = max(1, int(density * d.size))
    mask = np.zeros(d.size)
    mask[np.argsort(-np.abs(d).flatten(), kind="stable")[:k]] = 1
    return d * mask.reshape(d.shape)


def dropped(d, recipe, parent, path):
    out = d * kept(d.shape, recipe["density"], recipe["seed"], parent, path, 0)
    before, after = np.abs(d).sum(), np.abs(out).sum()
    return out * (before / after) if recipe.get("rescale", True) and min(before, after) >= 1e-7 else out


def by_mergekit(deltas, weights, recipe, path):
    """mergekit's formulas on one tensor; the base is zero."""
    method, w = recipe["method"], np.array(weights)
    if method == "soup":
        return sum(deltas) / len(deltas)
    if method == "linear":
        return sum(wi * d for wi, d in zip(w, deltas)) / (w.sum() if recipe.get("normalize", True) else 1)
    if method == "slerp":
        out, total = deltas[0], w[0]
        for wi, d in zip(w[1:], deltas[1:]):
            total += wi
            out = arc(recipe.get("t", wi / total), out, d)
        return out
    if method == "ties":
        deltas = [trimmed(d, recipe["density"]) for d in deltas]
    if method.startswith("dare"):
        deltas = [dropped(d, recipe, i, path) for i, d in enumerate(deltas)]
    weighted = np.stack([wi * d for wi, d in zip(w, deltas)])
    if method in ("task_arithmetic", "dare_linear"):
        out = weighted.sum(0) / (w.sum() if recipe.get("normalize") else 1)
    else:
        votes = np.sign(weighted) if recipe.get("elect") == "frequency" else weighted
        majority = np.where(votes.sum(0) >= 0, 1, -1)
        mask = np.sign(weighted) == majority
        out, divisor = (weighted * mask).sum(0), (w[:, None, None] * mask).sum(0)
        if recipe.get("normalize", method == "ties"):
            out = out / np.where(divisor == 0, 1, divisor)
    return out * recipe.get("lambda", 1.0)


FULL = {"rank": {"fixed": 64}}
W = {2: [0.7, -0.4], 3: [1.0, -0.5, 0.8], 4: [0.3, 1.1, -0.7, 0.9], 5: [1.0, 0.6, -0.8, 0.5, 1.3]}
FIVE = ["a", "b", "c", "d", "e"]


def cases():
    peft, mergekit = {}, {}
    for n in (2, 3, 4, 5):
        some, w = FIVE[:n], W[n]
        peft[f"cat_{n}"] = ("cat", some, w, {"method": "cat"})
        peft[f"svd_{n}"] = ("svd", some, w, {"method": "svd"})
        peft[f"svd_{n}_full"] = ("svd", some, w, {"method": "svd", **FULL})
        peft[f"ties_svd_{n}"] = ("ties_svd", some, w, {"method": "ties", "density": 0.3, "elect": "total", "rank": {"fixed": 4}})
        peft[f"ties_svd_{n}_frequency"] = ("ties_svd", some, w, {"method": "ties", "density": 0.55, "elect": "frequency", **FULL})
        peft[f"dare_linear_svd_{n}"] = ("dare_linear_svd", some, w, {"method": "dare_linear", "density": 0.6, "seed": 7 + n, **FULL})
        peft[f"dare_ties_svd_{n}"] = ("dare_ties_svd", some, w, {"method": "dare_ties", "density": 0.4, "seed": 9, "rank": {"fixed": 5}})
        peft[f"magnitude_prune_svd_{n}"] = ("magnitude_prune_svd", some, w, {"method": "magnitude_prune", "density": 0.25, **FULL})
        mergekit[f"mergekit_linear_{n}"] = (some, w, {"method": "linear", "semantics": "mergekit"})
        mergekit[f"mergekit_task_{n}"] = (some, w, {"method": "task_arithmetic", "lambda": 0.7})
        mergekit[f"mergekit_ties_{n}"] = (some, w, {"method": "ties", "semantics": "mergekit", "density": 0.3, "lambda": 1.2, **FULL})
        mergekit[f"mergekit_ties_{n}_sum"] = (some, w, {"method": "ties", "semantics": "mergekit", "density": 0.5, "elect": "frequency", "normalize": False, "rank": {"fixed": 3}})
        mergekit[f"mergekit_dare_linear_{n}"] = (some, w, {"method": "dare_linear", "semantics": "mergekit", "density": 0.5, "seed": 3, **FULL})
        mergekit[f"mergekit_dare_ties_{n}"] = (some, w, {"method": "dare_ties", "semantics": "mergekit", "density": 0.45, "seed": 4, **FULL})
        mergekit[f"slerp_{n}"] = (some, [1.0, 0.4, 2.0, 0.7, 0.3][:n], {"method": "slerp"})
    equal = ["a", "b", "c", "f"]
    for n in (2, 3, 4):
        some, w = equal[:n], W[n]
        factors = {"on": "factors"}
        peft[f"linear_{n}"] = ("linear", some, w, {"method": "linear", **factors})
        peft[f"ties_{n}"] = ("ties", some, w, {"method": "ties", "density": 0.4, **factors})
        peft[f"dare_linear_{n}"] = ("dare_linear", some, w, {"method": "dare_linear", "density": 0.7, "seed": 1, **factors})
        peft[f"dare_ties_{n}"] = ("dare_ties", some, w, {"method": "dare_ties", "density": 0.7, "seed": 2, "elect": "frequency", **factors})
        peft[f"magnitude_prune_{n}"] = ("magnitude_prune", some, w, {"method": "magnitude_prune", "density": 0.5, **factors})
    peft["rslora_first"] = ("svd", ["f", "e", "a"], [1.0, -0.6, 0.5], {"method": "svd", **FULL})
    peft["rslora_first_cat"] = ("cat", ["e", "f"], [0.9, 1.4], {"method": "cat"})
    mergekit["soup"] = (["a", "b", "d"], [1.0, 1.0, 1.0], {"method": "soup"})
    mergekit["slerp_t"] = (["a", "c"], [1.0, 1.0], {"method": "slerp", "t": 0.3})
    mergekit["slerp_parallel"] = (["a", "a"], [1.0, 1.0], {"method": "slerp", "t": 0.3})
    mergekit["mergekit_dare_plain"] = (["a", "d"], [0.5, -1.0], {"method": "dare_linear", "semantics": "mergekit", "density": 0.5, "seed": 11, "rescale": False, **FULL})
    mergekit["mergekit_dare_normalized"] = (["a", "d"], [0.5, 1.0], {"method": "dare_linear", "semantics": "mergekit", "density": 0.9, "seed": 12, "normalize": True, **FULL})
    return peft, mergekit


def main():
    warnings.filterwarnings("ignore")
    torch.set_default_dtype(torch.float64)
    out = Path(sys.argv[1])
    made = model()
    fill(made)
    tensors, parents, deltas = {}, {name: {} for name in PARENTS}, {}
    for path, layer in layers(made):
        for name in PARENTS:
            if found := factors(layer, name):
                a, b = (f.detach().numpy().astype(np.float32) for f in found)
                parents[name][path] = [a.shape[0], layer.scaling[name]]
                tensors[f"{name}/{path}/A"], tensors[f"{name}/{path}/B"] = a, b
                deltas[name, path] = delta(layer, name, path)
    peft, mergekit = cases()
    written = {}
    for name, (kind, some, w, recipe) in peft.items():
        case = {"peft": kind, "parents": some, "weights": w, "recipe": recipe}
        added = by_peft(made, case)
        written[name] = case | {"paths": sorted(added)}
        tensors |= {f"{name}/{path}": np.ascontiguousarray(d.astype(np.float32)) for path, d in added.items()}
    for name, (some, w, recipe) in mergekit.items():
        paths = sorted({path for other in some for path in parents[other]})
        written[name] = {"parents": some, "weights": w, "recipe": recipe, "paths": paths}
        for path in paths:
            shape = next(d.shape for (_, other), d in deltas.items() if other == path)
            given = [deltas.get((other, path), np.zeros(shape)) for other in some]
            added = by_mergekit(given, w, recipe, path)
            if "rank" in recipe:
                u, s, v = np.linalg.svd(added, full_matrices=False)
                r = recipe["rank"]["fixed"]
                added = (u[:, :r] * s[:r]) @ v[:r]
            tensors[f"{name}/{path}"] = np.ascontiguousarray(added.astype(np.float32))
    versions = {"peft": __import__("peft").__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    text = json.dumps({"versions": versions, "sizes": SIZES, "parents": parents, "cases": written}, indent=1)
    (out / "merge.json").write_text(text + "\n")
    save_file(tensors, out / "merge.safetensors")


main()
