"""A Flower strategy around `epiphyte aggregate`."""

from logging import ERROR, INFO
from pathlib import Path

from flwr.app import MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import FedAvg

from .files import call, packed, unpacked

VERSION, DELTA = "version", "delta"


class EpiphyteStrategy(FedAvg):
    """Samples and evaluates as Flower's FedAvg; takes signed deltas and gives the next version.

    Parameters
    ----------
    folder : where rounds are kept: `round-N/` with the deltas and the report, `version-N.safetensors`.
    first : the version to begin with (`epiphyte delta start`).
    key : the server's private key (PEM).
    arguments : further ones of `epiphyte aggregate`, such as `["--mode", "ffa"]`.
    epiphyte : the program.
    sampling : keyword arguments of FedAvg.
    """

    def __init__(self, folder, first, key, arguments=(), epiphyte="epiphyte", **sampling):
        super().__init__(**sampling)
        self.folder, self.parent, self.key = Path(folder), Path(first), Path(key)
        self.arguments, self.epiphyte = list(arguments), epiphyte

    def initial_arrays(self):
        """What `start` begins with."""
        return packed(VERSION, self.parent)

    def summary(self):
        super().summary()
        log(INFO, "\t└──> epiphyte aggregate %s", " ".join(self.arguments))

    def aggregate_train(self, server_round, replies):
        """The next version and the report's sums; the version stays where there is none."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        here = self.folder / f"round-{server_round}"
        for reply in valid:
            name = f"{reply.metadata.src_node_id}.delta"
            unpacked(next(iter(reply.content.array_records.values())), DELTA, here / "deltas" / name)
        if not valid:
            return None, None
        out = self.folder / f"version-{server_round}.safetensors"
        try:
            report = call(self.epiphyte, "aggregate", here / "deltas", "--parent", self.parent,
                          "--out", out, "--key", self.key, "--report", here / "report.json",
                          "--html", here / "report.html", *self.arguments)
        except RuntimeError as error:
            log(ERROR, "round %s publishes nothing: %s", server_round, error)
            return None, None
        self.parent = out
        refused = sum(entry["refusal"] is not None for entry in report["entries"])
        metrics = {"taken": len(report["entries"]) - refused, "refused": refused,
                   "delta-bytes": report["n_bytes"]}
        return packed(VERSION, out), MetricRecord(metrics)
