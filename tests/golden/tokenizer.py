"""Makes tokenizer.json, the golden file of tests/tokenizer.rs, with llama.cpp's own tokenizer.

    python -m venv v && v/bin/pip install gguf==0.19.0 sentencepiece==0.2.1
    npm install node-llama-cpp@3.22.0            (its prebuilt llama.cpp is used)
    v/bin/python tokenizer.py MODEL.gguf NODE_MODULES_DIR

Every pre-tokeniser is run over the vocabulary of MODEL: a copy of its metadata with another `tokenizer.ggml.pre`.
SentencePiece is a small model trained here; its vocabulary goes into the golden file.
"""
import json, random, subprocess, sys, tempfile
from pathlib import Path

import gguf
import sentencepiece

HERE = Path(__file__).parent
PRE = ["smollm", "llama-bpe", "qwen2", "gpt-2", "default"]

JS = """
import {getLlama} from "node-llama-cpp";
import fs from "fs";
const [strings, out, ...models] = process.argv.slice(2);
const texts = JSON.parse(fs.readFileSync(strings));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const ids = {};
for (const path of models) {
    const model = await llama.loadModel({modelPath: path, vocabOnly: true});
    const name = path.split("/").pop().replace(".gguf", "");
    ids[name] = {};
    for (const [key, special] of [["plain", false], ["special", true]])
        ids[name][key] = texts.map(text => Array.from(model.tokenize(text, special)));
    await model.dispose();
}
fs.writeFileSync(out, JSON.stringify(ids));
process.exit(0);
"""


def strings():
    fixed = [
        "", " ", "  ", "a", "Hello", "Hello world", " Hello", "Hello ", "  Hello   world  ", "The quick brown fox jumps.",
        "I'm you're he's they'll we'd I've can't don't", "I'M YOU'RE HE'S THEY'LL WE'D I'VE", "'s 't 're 've 'm 'll 'd 'x",
        "it''s", "'", "''s", "rock'n'roll", "l'été d'Anne", "o’clock", "'S'T'RE", "'ſ", "x's's's",
        "0", "7", "10", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "1 2 3", " 1", "  12", "a1b2c3", "1a", "v2.0.1",
        "٣٤٥", "१२३", "½ ¾ Ⅷ ² ₃", "x²+y²", "2024-11-23T23:30:00Z", "0x1F", "1e-9", "$12.50", "50%", "#1", "9 999",
        "\n", "\n\n", "\n\n\n", " \n", "\n ", " \n ", "a\nb", "a\n\nb", "a \n b", "a\n  b", "a  \n\n  b", "\r\n", "a\r\nb\r\n", "\r", "\t", "\t\t", "a\tb", "\ta",
        "a \t b", " \t\n ", "x" + " " * 2 + "y", "x" + " " * 7 + "y", "x" + " " * 40 + "y", " " * 100, "\n" * 30, "\t" * 9 + "z", " " * 16 + "1", "a" + " " * 3 + "!", "end.   ",
        "\u00a0", "a\u00a0b", "a\u2003\u2003b", "\u3000全角", "\u200b", "a\u200bb", "\u2028x\u2029y", "\u0085next", "\u180e", "\ufeffbom",
        "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\ta[i] *= 2;\n}", "let v: Vec<u8> = vec![0; 10];", "if a&&b||!c: pass",
        "<html><body class=\"x\">&amp;</body></html>", "SELECT * FROM t WHERE id=1;--", "{\"a\": [1, 2, {\"b\": null}]}", "\\n\\t\\\"", "C:\\Users\\x", "/usr/bin/env python3",
        "https://example.org/a?b=c&d=%20#e", "user.name+tag@mail.example.com", "snake_case camelCase PascalCase kebab-case SCREAMING_CASE", "a->b=>c<-d", "!!!", "?!?!", "...", "…", "--", "—", "«»", "„“",
        "==", "===", "!=", "+=", "#include <stdio.h>", "```rust\nfn main() {}\n```", "- item\n- item\n  - sub\n", "| a | b |\n|---|---|\n", "# Title\n\nText.", "(a)[b]{c}", "$x^2$", "~~~", "@#$%^&*", "<<>>", "`x`",
        "é", "e\u0301", "café", "cafe\u0301", "naïve Ångström", "Å A\u030a", "ñ n\u0303", "Zürich straße", "İstanbul ıi", "Łódź", "Ελληνικά", "Русский текст", "Українська ґ", "z\u0351\u0329a\u0336l\u0300g\u0323o",
        "你好世界", "你好，世界！", "こんにちは世界", "カタカナ ﾊﾝｶｸ", "안녕하세요", "각 \u1100\u1161\u11a8", "中文 and English 混合", "漢字1字", "𠀀𠮷", "ไทยภาษา", "हिन्दी में", "தமிழ்", "ქართული", "አማርኛ", "ខ្មែរ",
        "😀", "😀😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇯🇵", "❤️", "a😀b", " 😀", "1️⃣", "🤷🏽‍♀️ ok", "☃", "∑∫√∞", "→⇒", "𝒜𝓑", "ﬁ", "①②", "♠♥",
        "שלום עולם", "مرحبا بالعالم", "abc שלום 123", "\u202eabc\u202c", "\u200fx\u200e", "السَّلامُ",
        "\x00", "a\x00b", "\x01\x02\x03", "\x04\x06\x13\x14", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f", "\x16\x1d", "\x07bell", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\u0378",
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "<|im_start|", "<|im_<|im_end|>",
        "<repo_name>x<file_sep>y", "<s>", "</s>", "a</s>b", "<unk>", "<0x41>", "<pad>", "  <|im_start|>  x", "1<|endoftext|>2", "<jupyter_code>print(1)<empty_output>",
        "supercalifragilisticexpialidocious", "antidisestablishmentarianism" * 3, "a" * 50, "ab" * 40, "A" * 33, "lorem ipsum dolor sit amet " * 4, "▁", "a▁b", "▁▁x", "Ġ Ċ ĉ",
    ]
    rng = random.Random(7)
    alphabet = list("abcXYZ 's't019 .,!?-_\n\t\r<>|") + ["é", "\u0301", "中", "😀", "\u200d", "ß", "½", "٣", "\u00a0", "  ", "\u3000", "ж", "'LL", "'re"]
    return fixed + ["".join(rng.choices(alphabet, k=rng.randint(2, 24))) for _ in range(60)]


def with_metadata(source, path, change):
    """Writes the tokenizer of `source` with the keys of `change` set to other values."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = change.pop(name, field.contents())
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, value, kind, sub)
    for name, value in change.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def sentence_piece(folder):
    """Trains a tiny SentencePiece BPE model; returns it as the metadata of a GGUF file."""
    words = "the a of to and cat dog house tree water light river stone hand eye day night small large old new red blue walks runs sees finds keeps gives".split()
    rng = random.Random(3)
    corpus = folder / "corpus.txt"
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))).capitalize() + rng.choice(".!?") for _ in range(2000)]
    corpus.write_text("\n".join(lines + ["naïve café 12 345 6789 'tis it's"] * 20) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "sp"), vocab_size=500, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        user_defined_symbols=["<turn>"], minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))
    ids = range(sp.vocab_size())
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if i == sp.piece_to_id("<turn>") else 1
    return sp, {"tokens": [sp.id_to_piece(i) for i in ids], "scores": [sp.get_score(i) for i in ids], "token_types": [kind(i) for i in ids]}


def main(model, modules):
    source = gguf.GGUFReader(model)
    texts = strings()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        sp, vocab = sentence_piece(tmp)
        for pre in PRE:
            with_metadata(source, tmp / f"{pre}.gguf", {"tokenizer.ggml.pre": pre})
        spm = gguf.GGUFWriter(tmp / "spm.gguf", "llama")
        spm.add_block_count(1), spm.add_context_length(64), spm.add_embedding_length(64), spm.add_feed_forward_length(64)
        spm.add_head_count(1), spm.add_layer_norm_rms_eps(1e-5)
        spm.add_tokenizer_model("llama"), spm.add_token_list(vocab["tokens"]), spm.add_token_scores(vocab["scores"])
        spm.add_token_types(vocab["token_types"]), spm.add_bos_token_id(1), spm.add_eos_token_id(2), spm.add_unk_token_id(0)
        spm.write_header_to_file(), spm.write_kv_data_to_file(), spm.close()
        (tmp / "strings.json").write_text(json.dumps(texts))
        script = Path(modules).parent / "epiphyte-golden.mjs"
        script.write_text(JS)
        models = [str(tmp / f"{name}.gguf") for name in PRE + ["spm"]]
        subprocess.run(["node", script, tmp / "strings.json", tmp / "ids.json", *models], check=True)
        ids = json.loads((tmp / "ids.json").read_text())
        script.unlink()
    # SentencePiece itself on text without special tokens.
    ids["sentencepiece"] = {"plain": [sp.encode(text) for text in texts]}
    packed = {name: {key: [" ".join(map(str, row)) for row in rows] for key, rows in sets.items()} for name, sets in ids.items()}
    out = {"strings": texts, "ids": packed, "spm": vocab}
    (HERE / "tokenizer.json").write_text(json.dumps(out, ensure_ascii=True, indent=0) + "\n")


main(*sys.argv[1:])
