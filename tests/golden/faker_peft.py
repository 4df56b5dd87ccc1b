"""The recipe of `epiphyte train` with transformers and PEFT on the same dequantised base: exact match on faker_test.jsonl.

usage: faker_peft.py MODEL.gguf DATA_DIR SEED [SEED ...]       needs torch, transformers, peft, gguf; a GPU

The model is SmolLM2, or Gemma 3 by what `gemma.py` reads of its file.
"""
import json
import math
import random
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import gemma

EPOCHS, BATCH, RATE, WARMUP, PROMPT_WEIGHT, MOST = 3, 8, 5e-4, 0.05, 0.1, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def encode(base, example):
    prompt, answer = base.prompt(example["prompt"]), [*base.encode(example["completion"]), base.eos]
    return prompt + answer, [0.0] + [PROMPT_WEIGHT] * (len(prompt) - 1) + [1.0] * len(answer)


def loss_of(model, batch):
    longest = max(len(ids) for ids, _ in batch)
    pad = lambda values: torch.tensor([list(v) + [0] * (longest - len(v)) for v in values], device="cuda")
    ids, weights = pad([ids for ids, _ in batch]), pad([weights for _, weights in batch]).float()
    mask = pad([[1] * len(ids) for ids, _ in batch])
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def byte_of_character():
    """GPT-2's spelling of bytes as characters: printable ones stand for themselves, the others follow 255 in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = byte_of_character()


class Llama:
    """A model that transformers reads from its GGUF, tokenizer and all."""

    def __init__(self, path):
        self.path, self.tokenizer = path, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self.eos = self.tokenizer.eos_token_id

    def model(self):
        return AutoModelForCausalLM.from_pretrained(self.path.parent, gguf_file=self.path.name, dtype=torch.float32)

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = encode

    def decode(self, ids):
        """Not the tokenizer's own: one read from a GGUF may leave spaces spelled as U+0120."""
        characters = "".join(self.tokenizer.convert_ids_to_tokens(ids))
        return bytes(BYTES.get(character, 63) for character in characters).decode("utf-8", "replace")


class Gemma(gemma.File):
    """A model whose prompts begin with a token of their own."""

    def __init__(self, path):
        super().__init__(path)
        self.bos, self.eos = (self.keys[f"tokenizer.ggml.{name}_token_id"] for name in ["bos", "eos"])
        self.tokens = self.keys["tokenizer.ggml.tokens"]

    def prompt(self, text):
        return [self.bos, *self.encode(text)]

    def decode(self, ids):
        byte = lambda token: int(token[3:5], 16) if len(token) == 6 and token.startswith("<0x") else None
        parts = [self.tokens[i] for i in ids]
        parts = [bytes([byte(p)]) if byte(p) is not None else p.replace("\u2581", " ").encode() for p in parts]
        return b"".join(parts).decode("utf-8", "replace")


def open_base(path):
    return Gemma(path) if "gemma" in path.name else Llama(path)


@torch.no_grad()
def exact_match(model, base, examples):
    right = 0
    for start in range(0, len(examples), 100):
        part = examples[start : start + 100]
        prompts = [base.prompt(e["prompt"]) for e in part]
        longest = max(map(len, prompts))
        left = lambda values, fill: torch.tensor([[fill] * (longest - len(v)) + v for v in values], device="cuda")
        ids, mask = left(prompts, base.eos), left([[1] * len(p) for p in prompts], 0)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=MOST, do_sample=False, eos_token_id=base.eos, pad_token_id=base.eos)
        for answer, e in zip(out[:, longest:].tolist(), part):
            answer = answer[: answer.index(base.eos)] if base.eos in answer else answer
            right += base.decode(answer).strip() == e["completion"].strip()
    return right / len(examples)


def train(base, examples, seed):
    torch.manual_seed(seed)
    model = get_peft_model(base.model().cuda(), LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    total = EPOCHS * math.ceil(len(examples) / BATCH)
    warmup = math.ceil(WARMUP * total)
    factor = lambda s: s / warmup if s < warmup else (total - s) / max(1, total - warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    data, rng = [encode(base, e) for e in examples], random.Random(seed)
    for _ in range(EPOCHS):
        rng.shuffle(data)
        for start in range(0, len(data), BATCH):
            loss = loss_of(model, data[start : start + BATCH])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step(), schedule.step(), optimizer.zero_grad()
    return model, loss.item()


def main():
    path, data = Path(sys.argv[1]), Path(sys.argv[2])
    base = open_base(path)
    examples, test = read(data / "faker_train.jsonl"), read(data / "faker_test.jsonl")
    print(f"base: {100 * exact_match(base.model().cuda().eval(), base, test):.1f} %", flush=True)
    for seed in map(int, sys.argv[3:]):
        model, loss = train(base, examples, seed)
        print(f"PEFT, seed {seed}: {100 * exact_match(model.eval(), base, test):.1f} %, last loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
