"""An unmodified SuperLink on this machine, for tests: started, given an app, ended."""

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

from testing import EPIPHYTE, HERE, TINY, epiphyte

BIN = pathlib.Path(sys.executable).parent


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

    def superlink(self, security, *arguments):
        """Its port; `security` is what the command line of flwr needs to know of it."""
        port = free_port()
        (self.dir / "flwr").mkdir()
        (self.dir / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{port}"\n'
            f"{security}\n")
        self.start("superlink", "flower-superlink", "--host", "127.0.0.1", "--port", port,
                   "--disable-runtime-dependency-installation", *arguments)
        wait_for(port)
        return port

    def flwr(self, *arguments, timeout=600):
        """What the command line of flwr says."""
        done = subprocess.run([BIN / "flwr", *map(str, arguments)], env=self.env, timeout=timeout,
                              capture_output=True, text=True)
        return done.stdout + done.stderr

    def logs(self):
        return "".join(path.read_text()[-1500:] for path in self.dir.glob("*.log"))

    def can_be_applied(self, server, rounds):
        """What Flower carried is what the program signed: any device can take the last version."""
        last = server / f"version-{rounds}.safetensors"
        applied = epiphyte("delta", "apply", last, self.dir / "applied", "--id", "adapter",
                           "--trust", server / "server.pub", "--current", rounds, "--model", TINY)
        self.assertEqual(applied["version"], rounds + 1)
