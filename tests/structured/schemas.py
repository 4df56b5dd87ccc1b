"""Answers of the default model under the schemas of the JSON Schema Test Suite, validated.

    pip install jsonschema
    pip download --no-deps --no-binary :all: jsonschema==4.23.0 && tar xzf jsonschema-4.23.0.tar.gz
    python3 schemas.py collect jsonschema-4.23.0/json/tests schemas.jsonl
    EPIPHYTE_SCHEMAS=$PWD/schemas.jsonl cargo test --release --test main schemas -- --nocapture
    python3 schemas.py check schemas.jsonl schemas.answers.jsonl

The suite is in the source package of `jsonschema`, whose validator is the judge.
"""
import collections
import decimal
import json
import sys
from pathlib import Path

DRAFTS = {"draft7": "Draft7Validator", "draft2020-12": "Draft202012Validator", "draft4": "Draft4Validator"}
# What a schema of an older draft has to say.
DIALECTS = {"draft7": "http://json-schema.org/draft-07/schema#", "draft4": "http://json-schema.org/draft-04/schema#"}
# Schemas elsewhere: there is no network on a phone.
ELSEWHERE = ["refRemote.json", "vocabulary.json", "infinite-loop-detection.json"]


def collect(folder, out):
    """A schema a line, each once, by draft and file."""
    seen, lines = set(), []
    for draft in DRAFTS:
        for path in sorted((Path(folder) / draft).glob("*.json")):
            if path.name in ELSEWHERE:
                continue
            for case in json.loads(path.read_text()):
                if draft != "draft2020-12" and isinstance(case["schema"], dict):
                    case["schema"].setdefault("$schema", DIALECTS[draft])
                key = json.dumps(case["schema"], sort_keys=True)
                if key not in seen:
                    seen.add(key)
                    lines.append({"draft": draft, "file": path.name, "case": case["description"],
                                  "schema": case["schema"]})
    Path(out).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(len(lines), "schemas")


def is_rounding(error):
    """The validator divides floats: 1.1781 is a multiple of 0.0001 all the same."""
    if error.validator != "multipleOf":
        return False
    number, of = (decimal.Decimal(str(value)) for value in (error.instance, error.validator_value))
    return number % of == 0


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def check(schemas, answers):
    """Every answer that came whole is valid; what was cut or refused is counted."""
    import jsonschema

    counts, wrong, refused = collections.Counter(), [], collections.Counter()
    for case, answer in zip(read(schemas), read(answers)):
        if answer is None:
            counts["unanswered"] += 1
        elif answer.get("refused"):
            counts["refused"] += 1
            refused[f'{case["file"]}: {answer["refused"]}'[:110]] += 1
        elif answer["finish_reason"] != "end_of_generation":
            counts["cut"] += 1
        else:
            validator = getattr(jsonschema, DRAFTS[case["draft"]])(case["schema"])
            try:
                errors = [e for e in validator.iter_errors(json.loads(answer["text"])) if not is_rounding(e)]
            except ValueError as error:
                errors = [error]
            counts["wrong" if errors else "valid"] += 1
            wrong += [(case["draft"], case["file"], case["case"], answer["text"], str(e).splitlines()[0]) for e in errors[:1]]
    for reason, count in sorted(refused.items()):
        print(f"refused {count:3}  {reason}")
    for line in wrong:
        print("WRONG", *line, sep=" | ")
    print(dict(counts))
    sys.exit(bool(wrong) or counts["unanswered"] > 0 or counts["valid"] + counts["cut"] < 200 or counts["valid"] == 0)


if __name__ == "__main__":
    {"collect": collect, "check": check}[sys.argv[1]](*sys.argv[2:])
