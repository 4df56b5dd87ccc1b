"""Between one node and a SuperLink: counts what goes by, and kills the node where it is told to."""

import collections
import http.client
import http.server
import ssl
import threading
import time
from dataclasses import dataclass


@dataclass
class Kill:
    """Where a node is killed: `before` its request is passed on, `after` and before the answer, or
    some time after the `answer`.

    Parameters
    ----------
    call : the request, as in `push-object`.
    when : `before`, `after` or `answer`.
    message_type : of `pull-messages`, that of the message in the answer; empty for no message.
    """

    call: str
    when: str
    message_type: str = ""


def message_type(answer):
    """Of the message in an answer to `pull-messages`, if there is one."""
    # Field 8 of its metadata.
    fields = {kind: b"\x42" + bytes([len(kind)]) + kind.encode() for kind in ("train", "evaluate")}
    return next((kind for kind, field in fields.items() if field in answer), "")


class Relay(http.server.ThreadingHTTPServer):
    """`plan` holds kills, each of which waits for the one before; `kill` ends the node."""

    daemon_threads = True

    def __init__(self, superlink_port, tls, plan, kill):
        super().__init__(("127.0.0.1", 0), Handler)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(tls.certificate, tls.key)
        self.socket = server.wrap_socket(self.socket, server_side=True)
        self.client = ssl.create_default_context(cafile=tls.root)
        self.superlink_port, self.plan, self.kill = superlink_port, list(plan), kill
        self.done, self.lock = [], threading.Lock()
        self.requests, self.sent, self.received = collections.Counter(), 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"https://127.0.0.1:{self.server_address[1]}"

    def kills(self, call, when, answer=b""):
        """Whether the node is killed now, which is done."""
        with self.lock:
            next_one = self.plan[0] if self.plan else None
            if not next_one or (next_one.call, next_one.when) != (call, when):
                return False
            if call == "pull-messages" and next_one.message_type != message_type(answer):
                return False
            self.done.append(self.plan.pop(0))
        if when == "answer":
            time.sleep(0.3)
        self.kill()
        return True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        relay, call = self.server, self.path.rsplit("/", 1)[1]
        body = self.rfile.read(int(self.headers["content-length"]))
        if relay.kills(call, "before"):
            self.close_connection = True
            return
        link = http.client.HTTPSConnection("127.0.0.1", relay.superlink_port, context=relay.client)
        wanted = ("content-type", "flwr-")
        headers = {k: v for k, v in self.headers.items() if k.lower().startswith(wanted)}
        link.request("POST", self.path, body, headers)
        response = link.getresponse()
        answer = response.read()
        link.close()
        with relay.lock:
            relay.requests[call] += 1
            relay.sent += len(body)
            relay.received += len(answer)
        if relay.kills(call, "after", answer):
            self.close_connection = True
            return
        self.send_response_only(response.status)
        self.send_header("date", response.headers["date"])
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        self.wfile.flush()
        relay.kills(call, "answer")

    def log_message(self, *_):
        """Says nothing."""
