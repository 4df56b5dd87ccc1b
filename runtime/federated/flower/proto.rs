//! Flower's Fleet API on the wire, as far as a node speaks it: fields and their numbers are those
//! of `flwr.proto` in flwr 1.40 to 1.42.

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct RegisterNodeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) public_key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ActivateNodeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) public_key: Vec<u8>,
    #[prost(double, tag = "2")]
    pub(super) heartbeat_interval: f64,
}

/// What registering and activating are answered with, and what deactivating asks.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Node {
    #[prost(uint64, tag = "1")]
    pub(super) node_id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HeartbeatRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(double, tag = "2")]
    pub(super) heartbeat_interval: f64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct HeartbeatResponse {
    #[prost(bool, tag = "1")]
    pub(super) success: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PullMessagesRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PullMessagesResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) reconnect: Option<Reconnect>,
    #[prost(message, repeated, tag = "2")]
    pub(super) messages: Vec<FlowerMessage>,
    #[prost(message, repeated, tag = "3")]
    pub(super) trees: Vec<ObjectTree>,
}

/// Seconds until the SuperLink would like to be asked again.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Reconnect {
    #[prost(uint64, tag = "1")]
    pub(super) reconnect: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PullObjectRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(uint64, tag = "2")]
    pub(super) run_id: u64,
    #[prost(string, tag = "3")]
    pub(super) object_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PullObjectResponse {
    #[prost(bool, tag = "1")]
    pub(super) found: bool,
    #[prost(bool, tag = "2")]
    pub(super) available: bool,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) content: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfirmMessageRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(uint64, tag = "2")]
    pub(super) run_id: u64,
    #[prost(string, tag = "3")]
    pub(super) message_object_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PushMessagesRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(message, repeated, tag = "2")]
    pub(super) messages: Vec<FlowerMessage>,
    #[prost(message, repeated, tag = "3")]
    pub(super) trees: Vec<ObjectTree>,
    /// Seconds that each reply took.
    #[prost(double, repeated, tag = "4")]
    pub(super) runtimes: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PushMessagesResponse {
    #[prost(string, repeated, tag = "3")]
    pub(super) objects_to_push: Vec<String>,
    #[prost(string, tag = "4")]
    pub(super) session_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PushObjectRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(uint64, tag = "2")]
    pub(super) run_id: u64,
    #[prost(string, tag = "3")]
    pub(super) object_id: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) content: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(super) session_id: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct PushObjectResponse {
    #[prost(bool, tag = "1")]
    pub(super) stored: bool,
}

/// A message. Its content travels as objects, and is empty here; `None` beside an error.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FlowerMessage {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub(super) content: Option<()>,
    #[prost(message, optional, tag = "3")]
    pub(super) error: Option<ReplyError>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(uint64, tag = "1")]
    pub(super) run_id: u64,
    #[prost(string, tag = "2")]
    pub(super) message_id: String,
    #[prost(uint64, tag = "3")]
    pub(super) src_node_id: u64,
    #[prost(uint64, tag = "4")]
    pub(super) dst_node_id: u64,
    #[prost(string, tag = "5")]
    pub(super) reply_to_message_id: String,
    #[prost(string, tag = "6")]
    pub(super) group_id: String,
    /// Seconds after `created_at`.
    #[prost(double, tag = "7")]
    pub(super) ttl: f64,
    #[prost(string, tag = "8")]
    pub(super) message_type: String,
    /// Seconds since 1970.
    #[prost(double, tag = "9")]
    pub(super) created_at: f64,
    #[prost(uint64, optional, tag = "10")]
    pub(super) src_task_id: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub(super) dst_task_id: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReplyError {
    #[prost(sint64, tag = "1")]
    pub(super) code: i64,
    #[prost(string, tag = "2")]
    pub(super) reason: String,
}

/// The names of an object and of what it is made of.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectTree {
    #[prost(string, tag = "1")]
    pub(super) object_id: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) children: Vec<ObjectTree>,
}

/// A `MetricRecord`, and a `ConfigRecord` but for its lists.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(message, optional, tag = "2")]
    pub(super) value: Option<ItemValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ItemValue {
    #[prost(oneof = "Scalar", tags = "1, 2, 3, 4, 5, 6")]
    pub(super) scalar: Option<Scalar>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Scalar {
    #[prost(double, tag = "1")]
    Double(f64),
    #[prost(sint64, tag = "2")]
    Sint64(i64),
    #[prost(uint64, tag = "3")]
    Uint64(u64),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(string, tag = "5")]
    String(String),
    #[prost(bytes = "vec", tag = "6")]
    Bytes(Vec<u8>),
}
