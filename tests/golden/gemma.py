"""Gemma 3 270M by transformers on its file's dequantised weights, in f32: prompts.json, moby_dick.txt -> gemma.json

usage: gemma.py MODEL.gguf [WINDOWS]     needs torch, transformers, gguf; MODEL as `make model MODEL=gemma` fetches it

Greedy ids of the prompts that hold no control tokens, as greedy.py has them; and the perplexity of the first WINDOWS (8) windows of
the text in llama.cpp's definition, as perplexity.py, the first id of each window being BOS. `prompts` and `text` are ids by
llama.cpp's rule for SentencePiece vocabularies: user-defined tokens (line ends, several spaces) are cut out first, the longest where
several begin; in between, of neighbours that are a token together the best of score is joined, over and over.
"""
import heapq
import json
import re
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from families import GEMMA, NAMES

STEPS, WINDOW, USER_DEFINED = 32, 512, 4
here = Path(__file__).parent


class File:
    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        self.keys = {key: field.contents() for key, field in self.reader.fields.items()}
        tokens, kinds = self.keys["tokenizer.ggml.tokens"], self.keys["tokenizer.ggml.token_type"]
        defined = [token for token, kind in zip(tokens, kinds) if kind == USER_DEFINED]
        self.user_defined = re.compile("|".join(re.escape(token) for token in sorted(defined, key=len, reverse=True)))
        self.ids = {token: i for i, token in enumerate(tokens)}

    def get(self, key):
        return self.keys[f"gemma3.{key}"]

    def model(self):
        names = {f"blk.{{}}.{name}": module for module, name in NAMES} | {f"blk.{{}}.{name}": module for module, name in GEMMA}
        outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
        config = Gemma3TextConfig(
            vocab_size=len(self.keys["tokenizer.ggml.tokens"]), hidden_size=self.get("embedding_length"),
            intermediate_size=self.get("feed_forward_length"), num_hidden_layers=self.get("block_count"),
            num_attention_heads=self.get("attention.head_count"), num_key_value_heads=self.get("attention.head_count_kv"),
            head_dim=self.get("attention.key_length"), query_pre_attn_scalar=self.get("attention.key_length"),
            max_position_embeddings=self.get("context_length"), rms_norm_eps=1e-6, sliding_window=self.get("attention.sliding_window"),
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": self.get("rope.freq_base")},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            attn_implementation="eager",
        )  # fmt: skip
        tensors = {}
        for tensor in self.reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in reversed(tensor.shape)])
            if tensor.name in outside:
                name = outside[tensor.name]
            else:
                _, layer, module, part = tensor.name.split(".")
                name = f"model.layers.{layer}.{names[f'blk.{{}}.{module}']}.{part}"
            values = torch.from_numpy(np.array(values)).float()
            tensors[name] = values - 1 if "norm" in name else values
        model = Gemma3ForCausalLM(config).float()
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
        # The file holds the product of bf16's rounding nowhere: the scale is the root itself.
        model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5, dtype=torch.float32)
        return model.eval()

    def encode(self, text):
        out, at = [], 0
        for found in self.user_defined.finditer(text):
            out += [*self.join(text[at : found.start()]), self.ids[found[0]]]
            at = found.end()
        return out + self.join(text[at:])

    def join(self, text):
        ids, scores = self.ids, self.keys["tokenizer.ggml.scores"]
        symbols = list(text.replace(" ", "\u2581"))
        after, alive = list(range(1, len(symbols) + 1)), [True] * len(symbols)
        before = list(range(-1, len(symbols) - 1))
        heap = []

        def offer(i):
            j = after[i] if i >= 0 else len(symbols)
            if i >= 0 and j < len(symbols) and (joined := ids.get(symbols[i] + symbols[j])) is not None:
                heapq.heappush(heap, (-scores[joined], i, symbols[i], symbols[j], j))

        for i in range(len(symbols)):
            offer(i)
        while heap:
            _, i, left, right, j = heapq.heappop(heap)
            if not (alive[i] and alive[j] and after[i] == j and (symbols[i], symbols[j]) == (left, right)):
                continue
            symbols[i], alive[j], after[i] = left + right, False, after[j]
            if after[i] < len(symbols):
                before[after[i]] = i
            offer(i), offer(before[i])
        out = []
        for symbol, lives in zip(symbols, alive):
            if lives:
                known = ids.get(symbol)
                out += [known] if known is not None else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        return out


def greedy(model, ids):
    chosen, second, gaps, cache, feed = [], [], [], None, torch.tensor([ids])
    for _ in range(STEPS):
        out = model(input_ids=feed, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].topk(2)
        chosen.append(best.indices[0].item()), second.append(best.indices[1].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 5))
        feed = best.indices[None, :1]
    return chosen, second, gaps


def main():
    file = File(sys.argv[1])
    windows = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    bos = file.keys["tokenizer.ggml.bos_token_id"]
    prompts = [prompt for prompt in json.loads((here / "prompts.json").read_text()) if "<|" not in prompt["text"]]
    text = [bos, *file.encode((here / "moby_dick.txt").read_text(encoding="utf-8"))][: windows * WINDOW]
    model = file.model()
    golden = {"prompts": [], "window": WINDOW, "windows": windows, "text": text}
    with torch.no_grad():
        for prompt in prompts:
            ids = [bos, *file.encode(prompt["text"])]
            chosen, second, gaps = greedy(model, ids)
            golden["prompts"].append({**prompt, "prompt_ids": ids, "ids": chosen, "second": second, "gap": gaps})
            print(prompt["name"], min(gaps), flush=True)
        nll = []
        for i in range(windows):
            ids = torch.tensor([bos, *text[i * WINDOW + 1 : (i + 1) * WINDOW]])
            logits = model(input_ids=ids[None], use_cache=False).logits[0, WINDOW // 2 : -1]
            losses = torch.nn.functional.cross_entropy(logits, ids[WINDOW // 2 + 1 :])
            nll.append(losses.item())
            print("window", i, nll[-1], flush=True)
    golden["nll"], golden["perplexity"] = nll, float(np.exp(np.mean(nll)))
    lines = ",\n".join(json.dumps(entry) for entry in golden.pop("prompts"))
    (here / "gemma.json").write_text(f'{{"prompts": [\n{lines}\n],\n{json.dumps(golden)[1:]}\n')
    print("perplexity", golden["perplexity"])


if __name__ == "__main__":
    main()
