//! A node of [Flower](https://flower.ai): it takes versions from a `ServerApp` and gives deltas.
//!
//! Flower's Fleet API is protobuf over HTTP since flwr 1.40. [`Client`] makes the requests and reads
//! the answers, and does neither itself: whoever uses it has a connection (`URLSession`, `OkHttp`), a
//! clock, a place for a small file, and a P-256 key, maybe in a key store, that signs through
//! [`Signer`](super::Signer). The steps:
//!
//! ```
//! # use std::time::Duration;
//! # use epiphyte::federated::{Signer, flower::{Answer, Client, Step}};
//! # trait Host { fn now(&self) -> Duration; fn save(&self, bytes: &[u8]); fn sleep(&self, time: Duration); }
//! # fn post(_: &str, _: &[(&str, String)], _: &[u8]) -> Option<(u16, Option<String>, Vec<u8>)> { None }
//! # fn run(host: &dyn Host, mut client: Client, key: &dyn Signer) -> epiphyte::Result<()> {
//! loop {
//!     match client.poll(host.now(), key)? {
//!         // Before anything else: what is not saved is lost when the app is killed.
//!         Step::Save(bytes) => host.save(&bytes),
//!         Step::Send(request) => match post(request.path, &request.headers, &request.body) {
//!             Some((status, date, body)) => {
//!                 let answer = Answer::Http { status, date: date.as_deref(), body: &body };
//!                 client.answer(host.now(), answer);
//!             }
//!             None => client.answer(host.now(), Answer::Nothing),
//!         },
//!         Step::Wait(time) => host.sleep(time),
//!         // Train on it; `poll` now and then meanwhile, then `reply`.
//!         Step::Work(task) => break,
//!         Step::Over(end) => {}
//!         Step::Left => break,
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What is particular to a SuperLink, and what is done about it:
//!
//! - A node that goes offline before the `ServerApp` fetched its reply loses it: [`Client::leave`]
//!   asks until it is gone, or leaves the node online.
//! - A node that vanished can't be activated again until its heartbeat has lapsed: it is kept known,
//!   and a heartbeat brings it back.
//! - A message counts as delivered once it was asked for. If the answer was lost, nobody would ever
//!   reply to it: a node that asks again and is given none goes offline for half a minute, and the
//!   `ServerApp` goes on without it. (One that serves several runs at once may be given another
//!   run's: the first then waits until its own time-out.)
//! - A reply can't be announced twice once the `ServerApp` fetches it: what is missing of it is sent
//!   without a session.

mod answers;
mod auth;
mod call;
mod client;
mod npy;
mod object;
mod patience;
mod proto;
mod requests;
mod saved;

use std::collections::BTreeMap;
use std::time::Duration;

pub use client::Client;

/// How a node behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The longest time between two signs of life, 10 s to 30 minutes. A node that shows none for
    /// twice as long is offline, and the round goes on without it.
    pub heartbeat: Duration,
    /// Time between two questions for work.
    pub poll: Duration,
    /// How long no usable answer is borne; `None` for ever.
    pub patience: Option<Duration>,
    /// Largest message, in bytes.
    pub max_bytes: usize,
}

impl Default for Options {
    /// A heartbeat a minute, a question every three seconds, ten minutes of patience, 1 GiB.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(60),
            poll: Duration::from_secs(3),
            patience: Some(Duration::from_secs(600)),
            max_bytes: 1 << 30,
        }
    }
}

/// A request to make: `POST` to the SuperLink's address and this path.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// As in `/v1/fleet/pull-messages`.
    pub path: &'static str,
    /// All that are needed, but for the body's length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Request {
    /// Without the body, which may be what was learnt, and the signature.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Request({}, {} bytes)", self.path, self.body.len())
    }
}

/// What came of a request.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// An answer, whatever it says.
    Http {
        /// The status.
        status: u16,
        /// The header `date`, by which a clock that is wrong is seen.
        date: Option<&'a str>,
        /// The body.
        body: &'a [u8],
    },
    /// None: no connection, or it broke, or took too long.
    Nothing,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Store this in place of what was stored, whole or not at all, before the next step.
    Save(Vec<u8>),
    /// Make a request, then call [`Client::answer`].
    Send(Request),
    /// Nothing to do for so long.
    Wait(Duration),
    /// Work to do, then [`Client::reply`] or [`Client::refuse`]. Meanwhile go on with
    /// [`Client::poll`], which keeps the node online.
    Work(Task),
    /// What became of the last task.
    Over(End),
    /// The node has left; [`Client::poll`] says so from now on.
    Left,
}

/// What a `ServerApp` asks of a node.
#[derive(Clone, PartialEq)]
pub struct Task {
    /// `train`, `evaluate` or `query`, and after a dot an action's name.
    pub kind: String,
    /// The run it belongs to.
    pub run: u64,
    /// The packed array: in training and evaluating the version's file.
    pub payload: Option<Vec<u8>>,
    /// What the server's config says.
    pub config: BTreeMap<String, Value>,
}

impl std::fmt::Debug for Task {
    /// Without the payload.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.payload.as_ref().map_or(0, Vec::len);
        write!(f, "Task({}, {bytes} bytes, {:?})", self.kind, self.config)
    }
}

impl Task {
    /// The round, if the server says it.
    pub fn round(&self) -> Option<u64> {
        match self.config.get("server-round") {
            Some(Value::Whole(round)) => u64::try_from(*round).ok(),
            _ => None,
        }
    }
}

/// A value of a config.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number, of 64 bits with or without a sign.
    Whole(i128),
    /// A number.
    Real(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// Bytes or a list, which are not looked at.
    Other,
}

/// What a node answers to a task.
#[derive(Clone, Copy)]
pub struct Reply<'a> {
    /// The packed array: after training a delta's file.
    pub payload: Option<&'a [u8]>,
    /// Numbers, `num-examples` among them; the names are those of all nodes.
    pub metrics: &'a [(&'a str, Metric)],
}

/// A number that a node reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// How many.
    Count(u64),
    /// How much.
    Real(f64),
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The SuperLink has the reply, or wants nothing more of it.
    Delivered,
    /// The SuperLink knows that it was not done, and why.
    Refused(String),
    /// Nobody waits for it any more, and why.
    Dropped(&'static str),
}

/// How to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Offline once the last reply was fetched, which is asked for 200 s at most: the `ServerApp`
    /// does not wait for what was not replied to.
    Offline,
    /// Without a word: the node is taken for online until its heartbeat lapses, and goes on with its
    /// task when it comes back. For an app that may be gone for a while.
    Online,
}

/// What went over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub sent_bytes: u64,
    /// Bytes of the answers' bodies.
    pub received_bytes: u64,
}
