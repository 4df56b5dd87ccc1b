"""Two rounds of real training over an unmodified SuperLink on this machine: `python -m unittest`.

`EPIPHYTE` names the program (target/release/epiphyte otherwise). Needs `pip install .`, and a GPU or
Mesa's lavapipe; skipped by name where one is missing.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from testing import EPIPHYTE, HERE, TINY, epiphyte, first_version

BIN = pathlib.Path(sys.executable).parent
ROUNDS, NODES = 2, 2


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port}")


@unittest.skipUnless(importlib.util.find_spec("flwr"), "flwr is not installed")
@unittest.skipUnless(EPIPHYTE.exists(), f"{EPIPHYTE} is not built")
class Loopback(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.running = self.enterContext(contextlib.ExitStack())
        self.env = os.environ | {
            "FLWR_HOME": str(self.dir / "flwr"), "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}

    def start(self, name, *arguments):
        log = self.enterContext((self.dir / f"{name}.log").open("w"))
        process = subprocess.Popen([BIN / arguments[0], *map(str, arguments[1:])], env=self.env,
                                   stdout=log, stderr=log)
        self.running.callback(process.wait)
        self.running.callback(process.terminate)

    def app(self, **config):
        """A copy of the app whose defaults are these: whoever runs it has its own."""
        app = self.dir / "app"
        shutil.copytree(HERE / "epiphyte_flower", app / "epiphyte_flower")
        text = (HERE / "pyproject.toml").read_text()
        for key, value in config.items():
            key = key.replace("_", "-")
            lines = [line for line in text.splitlines() if line.startswith(f"{key} =")]
            self.assertEqual(len(lines), 1, key)
            text = text.replace(lines[0], f"{key} = {json.dumps(value)}")
        (app / "pyproject.toml").write_text(text)
        return app

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
        port = free_port()
        superlink = f"127.0.0.1:{port}"
        (self.dir / "flwr").mkdir()
        (self.dir / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "{superlink}"\n'
            "insecure = true\n")
        self.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port",
                   port, "--disable-runtime-dependency-installation")
        wait_for(port)
        for i in range(NODES):
            self.node(i, superlink)
        began = time.time()
        done = subprocess.run([BIN / "flwr", "run", app, "loop", "--stream"], env=self.env,
                              capture_output=True, text=True, timeout=600)
        said = done.stdout + done.stderr
        logs = "".join(path.read_text()[-1500:] for path in self.dir.glob("*.log"))
        for n in range(1, ROUNDS + 1):
            self.assertTrue((server / f"round-{n}" / "report.json").exists(), said + logs)
            report = json.loads((server / f"round-{n}" / "report.json").read_text())
            self.assertEqual((report["taken"], report["refused"]), (NODES, 0), report["entries"])
            self.assertEqual(report["version"], n + 1)
            print(f"round {n}: {report['n_bytes']} bytes of deltas, norm {report['mean_norm']:.4f}")
        print(f"{ROUNDS} rounds of {NODES} nodes in {time.time() - began:.1f} s")
        # What Flower carried is what the program signed: any device can take it.
        last = server / f"version-{ROUNDS}.safetensors"
        applied = epiphyte("delta", "apply", last, self.dir / "applied", "--id", "adapter",
                           "--trust", server / "server.pub", "--current", ROUNDS, "--model", TINY)
        self.assertEqual(applied["version"], ROUNDS + 1)


if __name__ == "__main__":
    unittest.main()
