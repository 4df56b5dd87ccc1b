//! The bodies of requests.

use prost::Message;

use super::call::Call;
use super::client::{Client, Phase};
use super::proto::{
    ActivateNodeRequest, ConfirmMessageRequest, HeartbeatRequest, Metadata, Node,
    PullMessagesRequest, PullObjectRequest, PushMessagesRequest, PushObjectRequest,
    RegisterNodeRequest,
};
use super::saved::{Inbox, Outbox};

impl Client {
    /// Of a call, about an object where it is about one.
    pub(super) fn body(&self, call: Call, object: &str) -> Vec<u8> {
        let id = Node { node_id: self.saved.node_id };
        let node = Some(id);
        let public_key = self.public_key.clone().into_bytes();
        let heartbeat_interval = self.options.heartbeat.as_secs_f64();
        match call {
            Call::Register => RegisterNodeRequest { public_key }.encode_to_vec(),
            Call::Activate => {
                ActivateNodeRequest { public_key, heartbeat_interval }.encode_to_vec()
            }
            Call::Heartbeat => HeartbeatRequest { node, heartbeat_interval }.encode_to_vec(),
            Call::Deactivate => id.encode_to_vec(),
            Call::Pull => PullMessagesRequest { node }.encode_to_vec(),
            Call::PullObject | Call::Confirm => self.about_message(call, node, object),
            Call::Look => {
                let run_id = self.saved.pushed.as_ref().map_or(0, |pushed| pushed.run_id);
                PullObjectRequest { node, run_id, object_id: object.into() }.encode_to_vec()
            }
            Call::Push | Call::PushObject => self.about_reply(call, node, object),
        }
    }

    fn about_message(&self, call: Call, node: Option<Node>, object: &str) -> Vec<u8> {
        let Some(Metadata { run_id, message_id, .. }) =
            self.saved.inbox.as_ref().and_then(Inbox::metadata).cloned()
        else {
            return Vec::new();
        };
        match call {
            Call::Confirm => {
                let message_object_id = message_id;
                ConfirmMessageRequest { node, run_id, message_object_id }.encode_to_vec()
            }
            _ => PullObjectRequest { node, run_id, object_id: object.into() }.encode_to_vec(),
        }
    }

    fn about_reply(&self, call: Call, node: Option<Node>, object: &str) -> Vec<u8> {
        let Some(outbox) = &self.saved.outbox else { return Vec::new() };
        let Outbox { message, tree, runtime, .. } = outbox;
        match (call, &self.phase) {
            (Call::PushObject, Phase::PushObjects { session, .. }) => {
                let request = PushObjectRequest {
                    node,
                    run_id: outbox.run_id(),
                    object_id: object.into(),
                    content: outbox.object(object),
                    session_id: session.clone(),
                };
                request.encode_to_vec()
            }
            _ => {
                let request = PushMessagesRequest {
                    node,
                    messages: message.iter().cloned().collect(),
                    trees: tree.iter().cloned().collect(),
                    runtimes: vec![*runtime],
                };
                request.encode_to_vec()
            }
        }
    }
}
