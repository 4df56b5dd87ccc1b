"""What flwr itself writes: `flower.json` and `flower_round.txt`. Needs `pip install flwr==1.40.0` (or
up to 1.42).

Bodies of requests and answers, a message for a node with its objects, and a node's reply, with every
number fixed. The messages of the first hold nothing but counting bytes. The second is a round for the
tests of Kotlin and Swift: answers in the order in which they are asked for, a line each (call,
base64), and what they bring is the version `delta/tiny.version`.
"""

import base64
import json
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

NODE, RUN, CREATED, REPLIED = 0xFEDC_BA98_7654_3210, 77, 1_795_918_714.25, 1_795_918_720.5


def hexed(message):
    return message.SerializeToString(deterministic=True).hex()


def named(message):
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def stripped(message):
    """As it travels: with an empty content."""
    return message_to_proto(remove_content_from_message(message))


def objects(message):
    return {name: thing.deflate().hex() for name, thing in get_all_nested_objects(message).items()}


key = ec.derive_private_key(int.from_bytes(bytes([8] * 32), "big"), ec.SECP256R1())
public = public_key_to_bytes(key.public_key())
node = Node(node_id=NODE)


def message(version, **config):
    """One that asks the node to train a version."""
    return named(Message(
        content=RecordDict({
            "arrays": ArrayRecord({"version": Array(version)}),
            "config": ConfigRecord(config),
        }),
        metadata=Metadata(
            run_id=RUN, message_id="", src_node_id=1, dst_node_id=NODE, reply_to_message_id="",
            group_id="3", created_at=CREATED, ttl=43200.0, message_type="train", src_task_id=5)))


def pulled(message):
    """The answers that bring a message: itself, and each of its objects."""
    pull = fleet_pb2.PullMessagesResponse(
        messages_list=[stripped(message)], message_object_trees=[get_object_tree(message)])
    return hexed(pull), [
        hexed(message_pb2.PullObjectResponse(
            object_found=True, object_available=True, object_content=bytes.fromhex(content)))
        for content in objects(message).values()]


asked = message(
    np.arange(1000).astype(np.uint8), **{"server-round": 3, "lr": 0.5, "note": "now", "on": True})
message_answer, object_answers = pulled(asked)
delta = (7 * np.arange(3000)).astype(np.uint8)
reply = Message(
    content=RecordDict({
        "arrays": ArrayRecord({"delta": Array(delta)}),
        "metrics": MetricRecord({"num-examples": 12, "loss": 0.25, "norm": 1.5}),
    }),
    metadata=Metadata(
        run_id=RUN, message_id="", src_node_id=NODE, dst_node_id=1,
        reply_to_message_id=asked.metadata.message_id, group_id="3", created_at=REPLIED,
        ttl=43200.0 - (REPLIED - CREATED), message_type="train", dst_task_id=5))
reply = named(reply)
objects_of_reply = objects(reply)
last = list(objects_of_reply)[-1]

golden = {
    "node_id": str(NODE),
    "public_key": public.decode(),
    "openssh": key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode(),
    "requests": {
        "register-node": hexed(fleet_pb2.RegisterNodeFleetRequest(public_key=public)),
        "activate-node": hexed(
            fleet_pb2.ActivateNodeRequest(public_key=public, heartbeat_interval=60)),
        "send-node-heartbeat": hexed(
            heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=60)),
        "deactivate-node": hexed(fleet_pb2.DeactivateNodeRequest(node_id=NODE)),
        "pull-messages": hexed(fleet_pb2.PullMessagesRequest(node=node)),
        "pull-object": [
            hexed(message_pb2.PullObjectRequest(node=node, run_id=RUN, object_id=name))
            for name in objects(asked)],
        "confirm-message-received": hexed(message_pb2.ConfirmMessageReceivedRequest(
            node=node, run_id=RUN, message_object_id=asked.metadata.message_id)),
        "push-messages": hexed(fleet_pb2.PushMessagesRequest(
            node=node, messages_list=[stripped(reply)],
            message_object_trees=[get_object_tree(reply)], clientapp_runtime_list=[6.0])),
        "push-object": [
            hexed(message_pb2.PushObjectRequest(
                node=node, run_id=RUN, object_id=name, object_content=bytes.fromhex(content),
                session_id="session"))
            for name, content in objects_of_reply.items()],
    },
    "answers": {
        "node": hexed(fleet_pb2.ActivateNodeResponse(node_id=NODE)),
        "alive": hexed(heartbeat_pb2.SendNodeHeartbeatResponse(success=True)),
        "unknown": hexed(heartbeat_pb2.SendNodeHeartbeatResponse(success=False)),
        "no_message": hexed(fleet_pb2.PullMessagesResponse()),
        "message": message_answer,
        "objects": object_answers,
        "object_gone": hexed(message_pb2.PullObjectResponse()),
        "object_not_yet": hexed(message_pb2.PullObjectResponse(object_found=True)),
        "accepted": hexed(fleet_pb2.PushMessagesResponse(
            reconnect=fleet_pb2.Reconnect(reconnect=5), results={reply.metadata.message_id: 0},
            objects_to_push=list(objects_of_reply), session_id="session")),
        "accepted_but_one": hexed(fleet_pb2.PushMessagesResponse(
            objects_to_push=[last], session_id="session")),
        "accepted_whole": hexed(fleet_pb2.PushMessagesResponse(session_id="session")),
        "stored": hexed(message_pb2.PushObjectResponse(stored=True)),
        "not_stored": hexed(message_pb2.PushObjectResponse(stored=False)),
    },
}
with open("flower.json", "w", encoding="utf-8") as file:
    json.dump(golden, file, indent=1)
    file.write("\n")

answers = golden["answers"]
published = np.frombuffer(Path("delta/tiny.version").read_bytes(), np.uint8)
message_answer, object_answers = pulled(message(published, **{"server-round": 1}))
lines = [("register-node", answers["node"]), ("activate-node", answers["node"]),
         ("pull-messages", message_answer), *(("pull-object", answer) for answer in object_answers),
         ("push-object", answers["stored"])]
with open("flower_round.txt", "w", encoding="utf-8") as file:
    for call, answer in lines:
        print(call, base64.b64encode(bytes.fromhex(answer)).decode(), file=file)
