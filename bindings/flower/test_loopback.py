"""Two rounds of real training over an unmodified SuperLink on this machine: `python -m unittest`.

`EPIPHYTE` names the program (target/release/epiphyte otherwise). Needs `pip install .`, and a GPU or
Mesa's lavapipe; skipped by name where one is missing.
"""

import json
import time
import unittest

import loopback
from loopback import free_port
from testing import EPIPHYTE, TINY, epiphyte, first_version

ROUNDS, NODES = 2, 2


class TwoNodes(loopback.Loopback):
    def node(self, i, superlink):
        here = self.dir / f"node{i}"
        here.mkdir()
        epiphyte("delta", "key", here / "key.pem")
        sea = ["the sea is blue", "the whale is white"][i]
        lines = [json.dumps({"prompt": f"{n}: ", "completion": sea}) for n in range(6 + 2 * i)]
        (here / "data.jsonl").write_text("\n".join(lines) + "\n")
        config = {"data": here / "data.jsonl", "key": here / "key.pem", "state": here / "state"}
        config = " ".join(f'{key}="{value}"' for key, value in config.items())
        self.start(f"node{i}", "flower-supernode", "--insecure", "--superlink", superlink, "--port",
                   free_port(), "--node-config", config)

    def test_two_nodes_make_two_versions(self):
        server = self.dir / "server"
        server.mkdir()
        first = first_version(server)
        app = self.app(
            num_server_rounds=ROUNDS, min_nodes=NODES, folder=str(server), model=str(TINY),
            server_key=str(server / "server.pem"), first_version=str(first),
            epiphyte=str(EPIPHYTE), server_pub=str(server / "server.pub"),
            train="--steps 3 --batch 2 --lr 0.01 --seq-len 32 --validation none")
        superlink = f"127.0.0.1:{self.superlink('insecure = true', '--insecure')}"
        for i in range(NODES):
            self.node(i, superlink)
        began = time.time()
        said = self.flwr("run", app, "loop", "--stream")
        for n in range(1, ROUNDS + 1):
            self.assertTrue((server / f"round-{n}" / "report.json").exists(), said + self.logs())
            report = json.loads((server / f"round-{n}" / "report.json").read_text())
            self.assertEqual((report["taken"], report["refused"]), (NODES, 0), report["entries"])
            self.assertEqual(report["version"], n + 1)
            print(f"round {n}: {report['n_bytes']} bytes of deltas, norm {report['mean_norm']:.4f}")
        print(f"{ROUNDS} rounds of {NODES} nodes in {time.time() - began:.1f} s")
        self.can_be_applied(server, ROUNDS)


if __name__ == "__main__":
    unittest.main()
