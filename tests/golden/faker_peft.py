"""The recipe of `epiphyte train` with transformers and PEFT on the same dequantised base: exact match on faker_test.jsonl.

usage: faker_peft.py MODEL.gguf DATA_DIR SEED [SEED ...]       needs torch, transformers, peft, gguf; a GPU
"""
import json
import math
import random
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

EPOCHS, BATCH, RATE, WARMUP, PROMPT_WEIGHT, MOST = 3, 8, 5e-4, 0.05, 0.1, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def encode(tokenizer, example):
    prompt = tokenizer(example["prompt"], add_special_tokens=False)["input_ids"]
    answer = tokenizer(example["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
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


def text_of(tokenizer, ids):
    """The answer up to its end. Not `decode`: a tokenizer read from a GGUF may leave spaces spelled as U+0120."""
    ids = ids.tolist()
    ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
    characters = "".join(tokenizer.convert_ids_to_tokens(ids))
    return bytes(BYTES.get(character, 63) for character in characters).decode("utf-8", "replace")


@torch.no_grad()
def exact_match(model, tokenizer, examples):
    right = 0
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    for start in range(0, len(examples), 100):
        part = examples[start : start + 100]
        inputs = tokenizer([e["prompt"] for e in part], return_tensors="pt", padding=True, add_special_tokens=False).to("cuda")
        out = model.generate(**inputs, max_new_tokens=MOST, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id)
        texts = [text_of(tokenizer, ids) for ids in out[:, inputs["input_ids"].shape[1] :]]
        right += sum(text.strip() == e["completion"].strip() for text, e in zip(texts, part))
    return right / len(examples)


def train(path, tokenizer, examples, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).cuda()
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    total = EPOCHS * math.ceil(len(examples) / BATCH)
    warmup = math.ceil(WARMUP * total)
    factor = lambda s: s / warmup if s < warmup else (total - s) / max(1, total - warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    data, rng = [encode(tokenizer, e) for e in examples], random.Random(seed)
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
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    examples, test = read(data / "faker_train.jsonl"), read(data / "faker_test.jsonl")
    base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).cuda()
    print(f"base: {100 * exact_match(base, tokenizer, test):.1f} %", flush=True)
    del base
    for seed in map(int, sys.argv[3:]):
        model, loss = train(path, tokenizer, examples, seed)
        print(f"PEFT, seed {seed}: {100 * exact_match(model.eval(), tokenizer, test):.1f} %, last loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
