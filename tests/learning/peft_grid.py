"""A grid of PEFT LoRA runs on the eight tasks: exact match of each, as JSON lines. Needs torch, transformers, peft, gguf.

usage: peft_grid.py MODEL.gguf TASKS_DIR RESULTS.jsonl [--seconds N] [--seeds 0,1,2] [--five TASK,TASK:LR:EPOCHS:PROMPT_WEIGHT]
       peft_grid.py MODEL.gguf TASKS_DIR --check

A small model leaves a large GPU idle, so runs of equal length go through the model side by side. The layers are PEFT's own; in
each, lora_A and lora_B are stacks of K matrices, one a run, and the rows of run k see only the k-th. Clipping, AdamW and the
learning rate are those of each run. `--check` trains the same runs one at a time with nothing changed in PEFT and torch's own
AdamW, and compares losses and factors; it also holds the tokens and the base to the golden files.

Runs that RESULTS.jsonl has are not made again; what does not fit into --seconds is left out, stack by stack.
"""
import argparse
import dataclasses
import json
import math
import random
import sys
import time
import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from tasks import TASKS

# Gradients are views of one flat tensor, on purpose.
warnings.filterwarnings("ignore", message="grad and param do not obey")
GOLDEN = Path(__file__).parent.parent / "golden"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RANK, ALPHA, BATCH, WARMUP, CLIP, BETAS, EPSILON = 8, 16, 8, 0.05, 1.0, (0.9, 0.999), 1e-8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATES = [2e-4, 5e-4, 1e-3]
EPOCHS = {400: [10, 4], 100: [20, 10]}
LORA = dict(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training; `set` is the part of the comparison that it belongs to."""
    set: str
    task: str
    n: int
    seed: int
    lr: float
    epochs: int
    prompt_weight: float = 0.0


# The model as the file has it.


def tokenizer_of(reader):
    """The file's byte-level BPE. SmolLM2 takes digits one by one, then splits as GPT-2 does."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    bpe.decoder = decoders.ByteLevel()
    return bpe


def hugging_face_name(name):
    plain = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in plain:
        return plain[name]
    _, layer, part, _ = name.split(".")
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    return f"model.layers.{layer}.{parts[part]}.weight"


def base_of(reader):
    """The dequantised weights in transformers' model, in f32. llama.cpp orders the rows of q and k pair by pair: undone."""
    key = lambda name: reader.fields[f"llama.{name}"].contents()
    heads, kv_heads, theta = key("attention.head_count"), key("attention.head_count_kv"), key("rope.freq_base")
    config = LlamaConfig(
        hidden_size=key("embedding_length"), num_hidden_layers=key("block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=key("feed_forward_length"), vocab_size=key("vocab_size"), max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"), rope_theta=theta, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, attn_implementation="sdpa")
    weights = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            count = heads if ".attn_q." in tensor.name else kv_heads
            value = value.view(count, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        weights[hugging_face_name(tensor.name)] = value
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    size = config.hidden_size // heads
    wanted = 1 / theta ** (torch.arange(0, size, 2) / size)
    assert torch.allclose(model.model.rotary_emb.inv_freq.cpu(), wanted, rtol=1e-5), "the base of RoPE was not taken over"
    return model.requires_grad_(False).to(DEVICE)


# Data: ids and weights, as `epiphyte train` makes them.


def read(folder, task, part):
    return [json.loads(line) for line in (folder / f"{task}.{part}.jsonl").read_text(encoding="utf-8").splitlines()]


class Data:
    def __init__(self, folder, tokenizer):
        self.folder, self.tokenizer, self.eos, self.kept = folder, tokenizer, 2, {}

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def train(self, task, n):
        """(prompt ids, answer ids) of each example; the answer ends with the end of text."""
        if (task, n) not in self.kept:
            self.kept[task, n] = [(self.ids(e["prompt"]), self.ids(e["completion"]) + [self.eos]) for e in read(self.folder, task, f"train{n}")]
        return self.kept[task, n]

    def test(self, task):
        return [(self.ids(e["prompt"]), e["completion"]) for e in read(self.folder, task, "test")]


def batches(run, data):
    """The batches of `run` in the order of its seed."""
    examples, rng = list(data.train(run.task, run.n)), random.Random(run.seed)
    for _ in range(run.epochs):
        rng.shuffle(examples)
        for start in range(0, len(examples), BATCH):
            yield examples[start : start + BATCH]


def rate(run, step, total):
    """Linear, as transformers' get_linear_schedule_with_warmup."""
    warmup = math.ceil(WARMUP * total)
    return run.lr * (step / warmup if step < warmup else (total - step) / max(1, total - warmup))


def tensors(runs, parts, eos):
    """Rows [K * BATCH, T] padded on the right, and for each scored position: where it is, its target, weight and run."""
    longest = max(len(p) + len(a) for part in parts for p, a in part)
    ids = np.full((len(runs) * BATCH, -(-longest // 8) * 8), eos, np.int64)
    at, target, weight, owner = [], [], [], []
    for k, (run, part) in enumerate(zip(runs, parts)):
        for row, (prompt, answer) in enumerate(part, k * BATCH):
            whole = prompt + answer
            ids[row, : len(whole)] = whole
            for i in range(1 if run.prompt_weight else len(prompt), len(whole)):
                at.append(row * ids.shape[1] + i - 1), target.append(whole[i]), owner.append(k)
                weight.append(1.0 if i >= len(prompt) else run.prompt_weight)
    move = lambda values, kind: torch.as_tensor(np.asarray(values, kind)).to(DEVICE, non_blocking=True)
    return torch.from_numpy(ids).to(DEVICE), move(at, np.int64), move(target, np.int64), move(weight, np.float32), move(owner, np.int64)


def losses_of(model, batch, count):
    """The mean loss of each run. Rows are padded on the right, so causal attention never sees the padding: no mask."""
    ids, at, target, weight, owner = batch
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state
    each = torch.nn.functional.cross_entropy(inner.lm_head(hidden.flatten(0, 1)[at]), target, reduction="none") * weight
    zeros = lambda: torch.zeros(count, device=DEVICE)
    return zeros().index_add(0, owner, each) / zeros().index_add(0, owner, weight)


# Many runs at once.


class Stack(torch.nn.Module):
    """In place of lora_A or lora_B: K matrices, the k-th for the k-th part of the rows."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        runs, out, _ = self.weight.shape
        return torch.bmm(x.reshape(runs, -1, x.shape[-1]), self.weight.transpose(1, 2)).view(*x.shape[:-1], out)


def lora_layers(model):
    return [module for _, module in model.named_modules() if hasattr(module, "lora_A")]


def first_a(seed, layers):
    """PEFT's first A of each layer, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        a = torch.empty(RANK, layer.in_features)
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        yield a


class Stacked:
    """K adapters in PEFT's layers, with one flat copy of factors, gradients and moments: [K, parameters of one]."""

    def __init__(self, model, runs):
        layers = lora_layers(model)
        sizes = [size for layer in layers for size in (RANK * layer.in_features, RANK * layer.out_features)]
        self.factors = torch.zeros(len(runs), sum(sizes), device=DEVICE)
        self.gradients, self.first, self.second = (torch.zeros_like(self.factors) for _ in range(3))
        self.rates, self.steps = torch.tensor([run.lr for run in runs], device=DEVICE)[:, None], 0
        ends = np.cumsum(sizes)
        part = lambda of, i, rows: of[:, ends[i] - sizes[i] : ends[i]].view(len(runs), rows, -1)
        for i, layer in enumerate(layers):
            for j, (name, rows) in enumerate([("lora_A", RANK), ("lora_B", layer.out_features)]):
                stack = Stack(part(self.factors, 2 * i + j, rows))
                stack.weight.grad = part(self.gradients, 2 * i + j, rows)
                getattr(layer, name)["default"] = stack
        for k, run in enumerate(runs):
            for i, a in enumerate(first_a(run.seed, layers)):
                part(self.factors, 2 * i, RANK)[k] = a.to(DEVICE)

    @torch.no_grad()
    def step(self, rates):
        """Clips each run's gradient to norm 1; AdamW without decay; the gradient is 0 again."""
        self.steps += 1
        self.gradients *= (CLIP / (self.gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self.first.lerp_(self.gradients, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(self.gradients, self.gradients, value=1 - BETAS[1])
        root = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
        self.factors -= (rates / (1 - BETAS[0] ** self.steps)) * self.first / root
        self.gradients.zero_()


def train(model, runs, data, clock, most=None):
    """The runs' adapters, in the model, and the losses of all steps [steps, K]; None when time runs out."""
    stacked, every = Stacked(model, runs), [list(batches(run, data)) for run in runs]
    total, losses = len(every[0]), []
    for step, parts in enumerate(zip(*every, strict=True)):
        if step == most:
            break
        loss = losses_of(model, tensors(runs, parts, data.eos), len(runs))
        loss.sum().backward()
        stacked.step(torch.tensor([[rate(run, step, total)] for run in runs], device=DEVICE))
        losses.append(loss.detach())
        if step % 20 == 19:
            losses[-1].sum().item()
            clock.trained(20 * len(runs))
            if clock.left() < clock.seconds_of((total - step) * len(runs)):
                return None
    return torch.stack(losses).cpu()


def answers(model, prompts, most, eos):
    """Greedy ids after each prompt, up to the end of text; prompts are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=DEVICE)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=eos, pad_token_id=eos)
    return [answer[: answer.index(eos)] if eos in answer else answer for answer in out[:, width:].tolist()]


@torch.no_grad()
def exact_match(model, runs, data, rows, most=None):
    """Greedy answers of all runs at once; the part of each that equals what is wanted, but for space around it."""
    tests = [data.test(run.task)[:most] for run in runs]
    longest = max(len(data.ids(wanted)) for test in tests for _, wanted in test)
    right, size = [0] * len(runs), max(1, rows // len(runs))
    for start in range(0, len(tests[0]), size):
        asked = [question for test in tests for question in test[start : start + size]]
        for i, (answer, (_, wanted)) in enumerate(zip(answers(model, [prompt for prompt, _ in asked], longest + 8, data.eos), asked)):
            right[i // (len(asked) // len(runs))] += data.tokenizer.decode(answer, skip_special_tokens=False).strip() == wanted.strip()
    return [count / len(tests[0]) for count in right]


class Clock:
    """What is left of the time, and what steps take."""

    def __init__(self, seconds):
        self.end, self.mark, self.each = time.time() + seconds, time.time(), None

    def left(self):
        return self.end - time.time()

    def start(self):
        self.mark = time.time()

    def trained(self, run_steps):
        now = time.time()
        self.each, self.mark = (now - self.mark) / run_steps, now

    def seconds_of(self, run_steps):
        return run_steps * self.each if self.each else 0.0


# What to run, most useful first.


def grid(seed, n, epochs):
    return [Run("grid", task, n, seed, lr, epochs) for task in TASKS for lr in RATES]


def stacks(seeds, five, done, most):
    """Runs of equal length, at most `most` together."""
    wanted = []
    for i, seed in enumerate(seeds):
        wanted += [grid(seed, n, EPOCHS[n][j]) for j in (0, 1) for n in (400, 100)]
        if five and i == 0:
            tasks, lr, epochs, weight = five.split(":")
            wanted.append([Run("five", task, 400, seed, float(lr), int(epochs), float(weight)) for task in tasks.split(",") for seed in range(5)])
    for runs in wanted:
        runs = [run for run in runs if run not in done]
        yield from (runs[start : start + most] for start in range(0, len(runs), most))


def done_in(path):
    lines = path.read_text().splitlines() if path.exists() else []
    names = [field.name for field in dataclasses.fields(Run)]
    return {Run(**{name: json.loads(line)[name] for name in names}) for line in lines}


# Is a stack the same as PEFT alone?

STEPS = 5


def factors_of(model):
    return [m.weight.detach().clone() for layer in lora_layers(model) for m in (layer.lora_A["default"], layer.lora_B["default"])]


def check(reader, data, model):
    golden = json.loads((GOLDEN / "tokens.json").read_text())["prompts"]
    texts = {prompt["name"]: prompt["text"] for prompt in json.loads((GOLDEN / "prompts.json").read_text())}
    plain = [name for name in golden if "<|" not in texts[name]]
    assert plain and all(data.ids(texts[name]) == golden[name] for name in plain), "tokens differ from llama.cpp's"
    for task in TASKS:
        for example in read(data.folder, task, "train400") + read(data.folder, task, "test"):
            prompt, answer = data.ids(example["prompt"]), data.ids(example["completion"])
            assert prompt + answer == data.ids(example["prompt"] + example["completion"]), example
            assert data.tokenizer.decode(answer) == example["completion"], example
    lengths = {task: max(len(p) + len(a) for p, a in data.train(task, 400)) for task in TASKS}
    print("tokens are right; longest example of each task:", lengths, flush=True)
    agree(model)
    runs = [Run("check", "dates", 100, 0, 1e-3, 1), Run("check", "style", 100, 1, 5e-4, 1, 0.1)]
    adapters = get_peft_model(model, LoraConfig(**LORA))
    together = train(adapters, runs, data, Clock(1e9), most=STEPS)
    stacked = factors_of(adapters)
    model = adapters.unload()
    for k, run in enumerate(runs):
        alone = get_peft_model(model, LoraConfig(**LORA))
        losses, factors = train_plainly(alone, run, data, STEPS)
        worst = max((a - b[k]).norm().item() / a.norm().clamp(min=1e-12).item() for a, b in zip(factors, stacked))
        print(f"run {k}: alone {losses}, in a stack {together[:, k].tolist()}; factors differ by at most {worst:.1e}", flush=True)
        bound = 1e-3 if DEVICE == "cuda" else 1e-5
        assert all(abs(a - b) < bound * a for a, b in zip(losses, together[:, k].tolist())), "a stack is not the same as PEFT alone"
        model = alone.unload()
    print("a stack gives what PEFT alone gives")


@torch.no_grad()
def agree(model):
    """Greedy steps of the golden file, given the golden ids before each."""
    same, steps, prompts = 0, 0, json.loads((GOLDEN / "greedy.json").read_text())
    for prompt in prompts:
        before, ids = prompt["prompt_ids"], prompt["ids"]
        best = model(torch.tensor([before + ids], device=DEVICE)).logits[0].argmax(-1).tolist()[len(before) - 1 : -1]
        same, steps = same + sum(a == b for a, b in zip(best, ids)), steps + len(ids)
    print(f"the base agrees with the exact forward pass in {same} of {steps} greedy steps", flush=True)
    assert same > 0.98 * steps, "the base is not that of the file"
    until_end = lambda ids: ids[: ids.index(2)] if 2 in ids else ids
    together = answers(model, [prompt["prompt_ids"] for prompt in prompts], 24, 2)
    alike = sum(answer == until_end(prompt["ids"][:24]) for answer, prompt in zip(together, prompts))
    print(f"padded and generated together, {alike} of {len(prompts)} answers are the exact ones", flush=True)
    assert alike >= len(prompts) - 1, "padding changes answers"


def train_plainly(model, run, data, most):
    """`run` with PEFT as it is and torch's AdamW and clipping."""
    for layer, a in zip(lora_layers(model), first_a(run.seed, lora_layers(model))):
        layer.lora_A["default"].weight.data.copy_(a)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, every, losses = torch.optim.AdamW(parameters, lr=run.lr, betas=BETAS, eps=EPSILON, weight_decay=0.0), list(batches(run, data)), []
    for step, part in enumerate(every[:most]):
        optimizer.param_groups[0]["lr"] = rate(run, step, len(every))
        loss = losses_of(model, tensors([run], [part], data.eos), 1)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    return losses, factors_of(model)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--five", help="TASK,TASK:LR:EPOCHS:PROMPT_WEIGHT, five seeds each")
    parser.add_argument("--stack", type=int, default=24, help="most runs at once")
    parser.add_argument("--rows", type=int, default=4800, help="most answers at once")
    parser.add_argument("--only", help="one task, for a trial")
    parser.add_argument("--steps", type=int, help="most steps of a run, for a trial")
    parser.add_argument("--answers", type=int, help="most test examples, for a trial")
    return parser.parse_args()


def main():
    args = arguments()
    clock = Clock(args.seconds)
    reader = gguf.GGUFReader(args.model)
    data, model = Data(args.tasks, tokenizer_of(reader)), base_of(reader)
    if args.check:
        return check(reader, data, model)
    # f32 throughout, products in TF32: no casts, and closer to what the base says than bf16.
    torch.set_float32_matmul_precision("high")
    adapters = get_peft_model(model, LoraConfig(**LORA)).train()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    for runs in stacks(seeds, args.five, done_in(args.results), args.stack):
        runs = [run for run in runs if args.only in (None, run.task)]
        if not runs:
            continue
        clock.start()
        steps, begun = runs[0].epochs * math.ceil(runs[0].n / BATCH) * len(runs), time.time()
        losses = train(adapters, runs, data, clock, args.steps) if clock.left() > clock.seconds_of(steps) + 10 else None
        if losses is None:
            print(f"no time for {len(runs)} runs of {runs[0].n} examples, {runs[0].epochs} epochs", flush=True)
            continue
        trained = time.time() - begun
        exact = exact_match(adapters, runs, data, args.rows, args.answers)
        seconds = (time.time() - begun) / len(runs)
        with args.results.open("a") as file:
            for k, run in enumerate(runs):
                line = dataclasses.asdict(run) | {"exact": exact[k], "loss": losses[-10:, k].mean().item(), "seconds": round(seconds, 3)}
                file.write(json.dumps(line) + "\n")
        memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0
        print(f"{runs[0].set} n {runs[0].n} seed {runs[0].seed} epochs {runs[0].epochs}: {len(runs)} runs, {trained:.1f} s + {time.time() - begun - trained:.1f} s, "
              f"mean exact {100 * sum(exact) / len(exact):.1f} %, {memory:.0f} GiB; {clock.left():.0f} s left", flush=True)


if __name__ == "__main__":
    main()
