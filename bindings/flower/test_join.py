"""Five rounds of real training by three nodes of `epiphyte flower join`: over TLS, with registered
keys, through an unmodified SuperLink, each node killed in every phase of a round and started again.

`python -m unittest -v test_join`; needs what test_loopback needs.
"""

import collections
import datetime
import ipaddress
import json
import signal
import subprocess
import threading
import time
import unittest

import loopback
from relay import Kill, Relay
from testing import EPIPHYTE, TINY, epiphyte, first_version

ROUNDS, NODES = 5, 3
# The one message that a node which dies at that moment can't get again.
LOST = Kill("pull-messages", "after", "train")
# Each waits for the one before it on the same node.
KILLS = [
    [Kill("pull-messages", "after"), Kill("pull-object", "after"),
     Kill("push-messages", "after")],
    [Kill("confirm-message-received", "after"), Kill("push-object", "before"),
     Kill("push-messages", "before")],
    # 0.3 s after the last of the message came: in training.
    [Kill("confirm-message-received", "answer"), Kill("push-object", "after"), LOST],
]


class Tls:
    """A root, and a certificate of this machine that it signed: `root`, `certificate`, `key`."""

    def __init__(self, folder):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        self.root, self.certificate, self.key = (
            folder / name for name in ("ca.pem", "tls.pem", "tls.key"))
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
                 for name in ("root", "loopback")]
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        for is_root, path in [(True, self.root), (False, self.certificate)]:
            made = (x509.CertificateBuilder()
                    .subject_name(names[not is_root]).issuer_name(names[0])
                    .public_key(keys[not is_root].public_key())
                    .serial_number(x509.random_serial_number())
                    .not_valid_before(now - day).not_valid_after(now + day)
                    .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), True))
            if not is_root:
                made = made.add_extension(here, False)
            path.write_bytes(
                made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()))


class Node:
    """`epiphyte flower join`, started again whenever the relay has killed it."""

    def __init__(self, folder, number, server):
        self.folder, self.number, self.server = folder, number, server
        self.starts, self.process, self.ending, self.report = 0, None, False, None
        folder.mkdir()
        epiphyte("delta", "key", folder / "key.pem", "--kind", "p256")
        openssh = epiphyte("flower", "key", "--key", folder / "key.pem")["openssh"]
        (folder / "key.pub").write_text(openssh + "\n")
        text = ["the sea is blue", "the whale is white", "the ship is old"][number]
        lines = [json.dumps({"prompt": f"{n}: ", "completion": text}) for n in range(8)]
        (folder / "data.jsonl").write_text("\n".join(lines) + "\n")

    def join(self, link_port, tls):
        self.relay = Relay(link_port, tls, KILLS[self.number], self.kill)
        self.command = [str(word) for word in [
            EPIPHYTE, "flower", "join", self.relay.url, "--root-certificates", tls.root,
            "--data", self.folder / "data.jsonl", "--key", self.folder / "key.pem",
            "--id", "adapter", "--trust", self.server / "server.pub", "--model", TINY,
            "--state", self.folder / "state", "--steps", 3, "--batch", 2, "--seq-len", 32,
            "--lr", "0.01", "--json"]]
        self.thread = threading.Thread(target=self.live)
        self.thread.start()

    def live(self):
        with (self.folder / "log").open("w") as log:
            while not self.ending:
                self.starts += 1
                self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log,
                                                text=True)
                said, _ = self.process.communicate()
                if said:
                    self.report = json.loads(said)
                if self.process.returncode != -signal.SIGKILL:
                    return

    def kill(self):
        self.process.kill()
        self.process.wait()

    def leave(self):
        self.ending = True
        self.process.send_signal(signal.SIGTERM)
        self.thread.join(60)
        self.relay.shutdown()
        self.relay.server_close()


class Join(loopback.Loopback):
    def end(self, nodes):
        for node in nodes:
            if node.process and node.process.poll() is None:
                node.ending = True
                node.kill()

    def test_three_nodes_are_killed_in_every_phase_and_rejoin(self):
        server = self.dir / "server"
        server.mkdir()
        first = first_version(server)
        app = self.app(
            num_server_rounds=ROUNDS, min_nodes=NODES, folder=str(server), model=str(TINY),
            server_key=str(server / "server.pem"), first_version=str(first),
            aggregate="--mode rolora --min-clients 2", epiphyte=str(EPIPHYTE),
            server_pub=str(server / "server.pub"))
        tls = Tls(self.dir)
        port = self.superlink(
            f'root-certificates = "{tls.root}"', "--ssl-ca-certfile", tls.root, "--ssl-certfile",
            tls.certificate, "--ssl-keyfile", tls.key, "--enable-supernode-auth")
        nodes = [Node(self.dir / f"node{i}", i, server) for i in range(NODES)]
        self.addCleanup(self.end, nodes)
        for node in nodes[1:]:
            self.assertIn("registered", self.flwr("supernode", "register", node.folder / "key.pub",
                                                  "loop"))
        self.refused_until_registered(nodes[0], port, tls)
        began = time.time()
        for node in nodes:
            node.join(port, tls)
        said = self.flwr("run", app, "loop", "--stream", timeout=900)
        for node in nodes:
            node.leave()
        logs = "".join((node.folder / "log").read_text()[-3000:] for node in nodes)
        context = said[-3000:] + logs
        self.check(server, first, nodes, context)
        print(f"{ROUNDS} rounds of {NODES} nodes in {time.time() - began:.1f} s")

    def refused_until_registered(self, node, port, tls):
        url = f"https://127.0.0.1:{port}"
        command = [EPIPHYTE, "flower", "join", url, "--root-certificates", tls.root, "--data",
                   node.folder / "data.jsonl", "--key", node.folder / "key.pem", "--id", "adapter",
                   "--trust", node.server / "server.pub", "--model", TINY, "--state",
                   node.folder / "state"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 1)
        self.assertIn("flwr supernode register", done.stderr)
        said = self.flwr("supernode", "register", node.folder / "key.pub", "loop")
        self.assertIn("registered", said)

    def check(self, server, first, nodes, context):
        kills = [kill for node in nodes for kill in node.relay.done]
        self.assertEqual(len(kills), sum(map(len, KILLS)), f"{kills}\n{context}")
        self.assertEqual([node.starts for node in nodes], [1 + len(plan) for plan in KILLS])
        taken = 0
        for n in range(1, ROUNDS + 1):
            path = server / f"round-{n}" / "report.json"
            self.assertTrue(path.exists(), context)
            report = json.loads(path.read_text())
            self.assertEqual((report["refused"], report["version"]), (0, n + 1), report["entries"])
            self.assertGreaterEqual(report["taken"], NODES - 1)
            taken += report["taken"]
        # What a killed node had learnt, or was about to learn, is in a version all the same.
        self.assertEqual(taken, ROUNDS * NODES - 1, context)
        print(f"{len(kills)} kills, one of which lost a message; {taken} of {ROUNDS * NODES} "
              f"deltas; a version has {first.stat().st_size} bytes")
        for node in nodes:
            calls = ", ".join(f"{n} {call}" for call, n in sorted(node.relay.requests.items()))
            print(f"node {node.number}: {node.starts} starts, {node.relay.sent} bytes sent, "
                  f"{node.relay.received} received: {calls}")
            self.assertTrue(node.report, context)
        tasks = [t for node in nodes for t in node.report["tasks"] if t["end"] == "delivered"]
        kinds = collections.defaultdict(list)
        for task in tasks:
            kinds[task["kind"]].append(task)
        for kind, tasks in kinds.items():
            mean = {key: sum(task[key] or 0 for task in tasks) / len(tasks) for key in
                    ("requests", "sent_bytes", "delta_bytes", "received_bytes", "seconds")}
            print(f"{kind}: " + ", ".join(f"{v:.1f} {k}" for k, v in mean.items()) +
                  f" (mean of {len(tasks)})")
        self.can_be_applied(server, ROUNDS)


if __name__ == "__main__":
    unittest.main()
