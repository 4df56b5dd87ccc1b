//! What a node keeps over a restart: who it is to the SuperLink, and the message it is busy with.

use prost::Message;

use super::object::{Objects, Sendable, id_of, names};
use super::proto::{FlowerMessage, Metadata, ObjectTree};
use crate::error::Result;
use crate::federated::{PublicKey, invalid};

const FORMAT: &str = "epiphyte.flower_node.1";
const WHAT: &str = "node state";

#[derive(Clone, PartialEq, Message)]
pub(super) struct Saved {
    #[prost(string, tag = "1")]
    format: String,
    #[prost(string, tag = "2")]
    key: String,
    /// 0 until the SuperLink has given one.
    #[prost(uint64, tag = "3")]
    pub(super) node_id: u64,
    /// The node came online and did not leave: an answer may have been lost since.
    #[prost(bool, tag = "4")]
    pub(super) is_open: bool,
    /// The last reply, unless it is known to be fetched.
    #[prost(message, optional, tag = "5")]
    pub(super) pushed: Option<Pushed>,
    #[prost(message, optional, tag = "6")]
    pub(super) inbox: Option<Inbox>,
    #[prost(message, optional, tag = "7")]
    pub(super) outbox: Option<Outbox>,
}

/// A message for this node.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Inbox {
    #[prost(message, optional, tag = "1")]
    pub(super) message: Option<FlowerMessage>,
    #[prost(message, optional, tag = "2")]
    pub(super) tree: Option<ObjectTree>,
    #[prost(message, repeated, tag = "3")]
    objects: Vec<StoredObject>,
}

/// A reply that the SuperLink does not have whole.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Outbox {
    #[prost(message, optional, tag = "1")]
    pub(super) message: Option<FlowerMessage>,
    #[prost(message, optional, tag = "2")]
    pub(super) tree: Option<ObjectTree>,
    #[prost(message, repeated, tag = "3")]
    objects: Vec<StoredObject>,
    /// Seconds that the work took.
    #[prost(double, tag = "4")]
    pub(super) runtime: f64,
    /// Why nothing was done; empty where it was.
    #[prost(string, tag = "5")]
    pub(super) refusal: String,
}

/// A reply that the SuperLink has whole.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Pushed {
    #[prost(uint64, tag = "1")]
    pub(super) run_id: u64,
    #[prost(string, tag = "2")]
    pub(super) message_id: String,
    /// Since when, in seconds since 1970 by the device's clock.
    #[prost(double, tag = "3")]
    pub(super) at: f64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredObject {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bytes = "vec", tag = "2")]
    bytes: Vec<u8>,
}

impl Saved {
    /// Of a node that no SuperLink knows.
    pub(super) fn new(key: &PublicKey) -> Self {
        Self { format: FORMAT.into(), key: key.to_string(), ..Self::default() }
    }

    /// Errors: `InvalidDelta` for what is damaged, of another format, or of another key.
    pub(super) fn read(bytes: &[u8], key: &PublicKey) -> Result<Self> {
        let damaged = || invalid(WHAT, "damaged; delete it, and the node joins as a new one");
        let saved = Self::decode(bytes).map_err(|_| damaged())?;
        if saved.format != FORMAT {
            return Err(invalid(WHAT, format!("no `{FORMAT}`; name another file")));
        }
        if saved.key != key.to_string() {
            let reason = format!("of key {}; give that key, or another file", saved.key);
            return Err(invalid(WHAT, reason));
        }
        let inbox = saved.inbox.iter().flat_map(|inbox| &inbox.objects);
        let mut objects = inbox.chain(saved.outbox.iter().flat_map(|outbox| &outbox.objects));
        let boxes = saved.inbox.iter().map(|b| (b.message.as_ref(), b.tree.as_ref()));
        let mut boxes =
            boxes.chain(saved.outbox.iter().map(|b| (b.message.as_ref(), b.tree.as_ref())));
        let is_whole = objects.all(|object| id_of(&object.bytes) == object.id)
            && boxes.all(|(message, tree)| {
                message.is_some_and(|m| m.metadata.is_some()) && tree.and_then(names).is_some()
            });
        is_whole.then_some(saved).ok_or_else(damaged)
    }
}

impl Inbox {
    /// A message that is to be pulled; nothing for one that can't be.
    pub(super) fn new(message: FlowerMessage, tree: ObjectTree) -> Option<Self> {
        let is_its_own = message.metadata.as_ref()?.message_id == tree.object_id;
        names(&tree)?;
        let (message, tree) = (Some(message), Some(tree));
        is_its_own.then_some(Self { message, tree, objects: Vec::new() })
    }

    pub(super) fn metadata(&self) -> Option<&Metadata> {
        self.message.as_ref()?.metadata.as_ref()
    }

    /// The name of an object that is not here yet.
    pub(super) fn missing(&self) -> Option<String> {
        let wanted = self.tree.as_ref().and_then(names).unwrap_or_default();
        wanted.into_iter().find(|name| !self.objects.iter().any(|object| object.id == *name))
    }

    pub(super) fn add(&mut self, id: String, bytes: Vec<u8>) {
        self.objects.push(StoredObject { id, bytes });
    }

    /// Bytes of what is here.
    pub(super) fn n_bytes(&self) -> usize {
        self.objects.iter().map(|object| object.bytes.len()).sum()
    }

    pub(super) fn objects(&self) -> Objects {
        self.objects.iter().map(|object| (object.id.clone(), object.bytes.clone())).collect()
    }
}

impl Outbox {
    pub(super) fn new(sendable: Sendable, runtime: f64, refusal: String) -> Self {
        let objects = sendable.objects.into_iter().map(|(id, bytes)| StoredObject { id, bytes });
        Self {
            message: Some(sendable.message),
            tree: Some(sendable.tree),
            objects: objects.collect(),
            runtime,
            refusal,
        }
    }

    pub(super) fn metadata(&self) -> Option<&Metadata> {
        self.message.as_ref()?.metadata.as_ref()
    }

    pub(super) fn run_id(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.run_id)
    }

    /// Its objects, in the order to send them.
    pub(super) fn names(&self) -> Vec<String> {
        self.objects.iter().map(|object| object.id.clone()).collect()
    }

    /// Those of its objects that are among `wanted`, in the order to send them.
    pub(super) fn among(&self, wanted: &[String]) -> Vec<String> {
        let ids = self.objects.iter().map(|object| &object.id);
        ids.filter(|id| wanted.contains(id)).cloned().collect()
    }

    pub(super) fn object(&self, id: &str) -> Vec<u8> {
        let found = self.objects.iter().find(|object| object.id == id);
        found.map_or_else(Vec::new, |object| object.bytes.clone())
    }
}
