"""Exact match of the learning experiment as one bar chart.    Needs: pip install matplotlib

usage: faker_plot.py RESULTS.json OUT.svg

RESULTS.json holds percents: {"base": 0.0, "epiphyte": [64.0, 64.0, 62.0], "peft": [63.5, 64.0, 62.5]}, one number a seed.
"""
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
# No date and no random ids: the same results give the same file.
matplotlib.rcParams["svg.hashsalt"] = "epiphyte"
import matplotlib.pyplot as plt


def main():
    results = json.loads(Path(sys.argv[1]).read_text())
    groups = [("base", [results["base"]]), ("Epiphyte", results["epiphyte"]), ("PEFT", results["peft"])]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for x, (name, values) in enumerate(groups):
        mean = sum(values) / len(values)
        axes.bar(x, mean, width=0.6, color=["#999999", "#2e7d32", "#1f77b4"][x])
        axes.text(x, mean + 4, f"{mean:.1f} %", ha="center")
        # Each seed, beside the others.
        axes.plot([x + 0.12 * (i - (len(values) - 1) / 2) for i in range(len(values))], values, "k.")
    axes.set_xticks(range(len(groups)), [name for name, _ in groups])
    axes.set_ylabel("exact match on 200 sentences, %")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
