"""Where pre-tokenisers cut texts, by the `regex` module: pretokenize.json.

usage: pretokenize.py            needs regex

The patterns are those of the models' own tokenizer.json: each is a `Split` with behaviour `Isolated`, one after the other.
"""

import json
import pathlib

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BEFORE, ENDING = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ"
    "\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
    r"Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
CJK = "[一-龥ࠀ-一가-\ud7ff]+"
PATTERNS = {
    "llama-bpe": [LLAMA3],
    "falcon3": [LLAMA3],
    "smaug-bpe": [LLAMA3],
    "qwen2": [LLAMA3.replace("{1,3}", "")],
    "deepseek-r1-qwen": [LLAMA3.replace("{1,3}", "")],
    "smollm": [r"\p{N}", GPT2],
    "falcon": [r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"],
    "tekken": [rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}|{REST}"],
    "gpt-4o": [rf"{BEFORE}{UPPER}*{LOWER}+{ENDING}|{BEFORE}{UPPER}+{LOWER}*{ENDING}|\p{{N}}{{1,3}}|{REST}"],
    "deepseek-llm": [r"[\r\n]", LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK, r"\p{N}+"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
}
TEXTS = [
    "Hello world, we'LL go; it's 12345678 o'clock   today!!\r\n\r\n  next\tline \n",
    "camelCaseWord HTTPServer XMLs ÉCOLE école Ǆuro ǅ ªº a'S A'Re I'VE'D",
    "  fn main() {\n    let x_1 = [0x1F; 16]; // done?\n\t\treturn;\n}\n\n\n",
    "日本語のテキスト、ひらがなとカタカナー。 中文文本，你好！ 한국어 텍스트 ㄱㄴ",
    "Ωmega Ελληνικά ΰ ᾼ ᾽ Кириллица Ѐ ҂ Ԥ ქართული ⴀⴁ ᲐᲑ Հայերեն Ա",
    "עברית العربية ١٢٣٤ हिन्दी ०१२ ไทย ภาษา é e\u0301 n\u0303 ñ",
    "½ ² Ⅷ ① 1½ 3.14159 1,000,000 -42 +7 €100 $5.00 50% #tag @user",
    "😀😀 👨‍👩‍👧 ❤️ ©®™ ∑∞≠ «quote» “curly” ‘single’ …—–-",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\x0bg\x0ch  \u00a0 i",
    "''''s 'tis ''re <|im_end|> </s> [INST] ``` a`b`c ~~x~~ a|b||c \\n \\\\",
    "   ", "\n", " \n ", "\r\n", "a ", " a", "   leading and trailing   ", "\t\tx\t \n\n y",
    "𝐀𝐁 𐐀𐐨 𞤀 ﬀ ﬁ Ａｂ１２ ꭰ ꚠ ʔ ƻ ǀ ℵ K Å ⅓ \u2126",
    "http://a.b/c?d=e&f=g#h user@mail.example foo/bar//baz.rs /* c */ //\n//\n",
]


def cut(text, patterns):
    pieces = [text]
    for pattern in patterns:
        split = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                split += [piece[end : match.start()], match.group()]
                end = match.end()
            split.append(piece[end:])
        pieces = [piece for piece in split if piece]
    return pieces


if __name__ == "__main__":
    golden = {name: [cut(text, patterns) for text in TEXTS] for name, patterns in PATTERNS.items()}
    text = "{\n" + ",\n".join(f"{json.dumps(k)}: [\n" + ",\n".join(json.dumps(p) for p in v) + "\n]" for k, v in golden.items()) + "\n}\n"
    pathlib.Path(__file__).with_name("pretokenize.json").write_text(text)
