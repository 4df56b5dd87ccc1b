"""A node: applies the version, trains it on its own examples, sends a signed delta.

Of `--node-config`: `data` (JSONL), `key` (PEM), `state` (a folder of the node's own), and whatever
of the app's config is another one here.
"""

from pathlib import Path

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .files import call, packed, unpacked
from .strategy import DELTA, VERSION

app = ClientApp()


class Node:
    def __init__(self, message, context):
        self.config = {**context.run_config, **context.node_config}
        self.state = Path(self.config["state"])
        self.model = ["--model", self.config["model"]] if self.config["model"] else []
        self.round = int(message.content["config"]["server-round"])
        self.version = unpacked(message.content["arrays"], VERSION, self.state / "version.safetensors")
        # Checks signature, base and id before anything is used.
        self.adapter = self.state / "adapter"
        self.call("delta", "apply", self.version, self.adapter, "--id", self.config["adapter-id"],
                  "--trust", self.config["server-pub"])

    def call(self, *arguments):
        return call(self.config["epiphyte"], *arguments, *self.model)

    def examples(self):
        return sum(1 for line in Path(self.config["data"]).read_text().splitlines() if line.strip())


@app.train()
def train(message, context):
    node = Node(message, context)
    trained, delta = node.state / f"trained-{node.round}", node.state / "delta"
    report = node.call("train", "--data", node.config["data"], "--init", node.adapter,
                       "--out", trained, *node.config["train"].split())
    made = node.call("delta", "make", node.version, trained, delta, "--key", node.config["key"],
                     "--examples", node.examples(), "--drop-frozen")
    metrics = {"num-examples": node.examples(), "loss": report["loss"]["last"], "norm": made["norm"]}
    content = RecordDict({"arrays": packed(DELTA, delta), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message, context):
    node = Node(message, context)
    found = node.call("eval", "--data", node.config["data"], "--adapter", node.adapter)
    metrics = {"num-examples": node.examples(), "loss": found["loss"], "exact": found["exact_match"]}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
