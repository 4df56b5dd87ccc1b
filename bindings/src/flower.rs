//! A node of Flower that makes no request itself: steps go out, what came of them comes in. The app
//! has the connection, the clock, a place for a small file, and the key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use epiphyte::federated::{PublicKey, flower};
use flower::{Answer, Client, End, Leave, Metric, Options, Step, Task, Value};

use crate::error::{bytes, count};
use crate::federated::Signing;
use crate::worker::{self, lock};
use crate::{EpiphyteError, SigningCallback};

/// How a node behaves.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct FlowerOptions {
    /// The longest time between two signs of life, 10 to 1,800. A node that shows none for twice as
    /// long is offline, and the round goes on without it.
    #[uniffi(default = 60)]
    pub heartbeat_seconds: i64,
    /// Time between two questions for work.
    #[uniffi(default = 3)]
    pub poll_seconds: i64,
    /// How long no usable answer is borne; none for ever.
    #[uniffi(default = Some(600))]
    pub patience_seconds: Option<i64>,
    /// Largest message.
    #[uniffi(default = 1073741824)]
    pub max_bytes: i64,
}

impl TryFrom<FlowerOptions> for Options {
    type Error = EpiphyteError;

    fn try_from(options: FlowerOptions) -> Result<Self, EpiphyteError> {
        let seconds = |name, value: i64| count(name, value).map(Duration::from_secs);
        let patience = |value| seconds("patience_seconds", value);
        Ok(Self {
            heartbeat: seconds("heartbeat_seconds", options.heartbeat_seconds)?,
            poll: seconds("poll_seconds", options.poll_seconds)?,
            patience: options.patience_seconds.map(patience).transpose()?,
            max_bytes: count("max_bytes", options.max_bytes)?,
        })
    }
}

/// A request to make: `POST` to the SuperLink's address and this path.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct FlowerRequest {
    /// As in `/v1/fleet/pull-messages`.
    pub path: String,
    /// All that are needed, but for the body's length.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer to a request, whatever it says.
#[derive(Clone, PartialEq, Eq, uniffi::Record)]
pub struct FlowerAnswer {
    /// The status.
    pub status: i32,
    /// The header `date`, by which a clock that is wrong is seen.
    pub date: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// A value of a server's config.
#[derive(Clone, Debug, PartialEq, uniffi::Enum)]
pub enum FlowerValue {
    /// A whole number.
    Whole {
        /// It.
        value: i64,
    },
    /// A number.
    Real {
        /// It.
        value: f64,
    },
    /// Yes or no.
    Bool {
        /// It.
        value: bool,
    },
    /// A text.
    Text {
        /// It.
        value: String,
    },
    /// Bytes, a list, or a whole number above those of 64 bits with a sign.
    Other,
}

impl From<Value> for FlowerValue {
    fn from(value: Value) -> Self {
        match value {
            Value::Whole(value) => {
                i64::try_from(value).map_or(Self::Other, |value| Self::Whole { value })
            }
            Value::Real(value) => Self::Real { value },
            Value::Bool(value) => Self::Bool { value },
            Value::Text(value) => Self::Text { value },
            Value::Other => Self::Other,
        }
    }
}

/// What a `ServerApp` asks of a node.
#[derive(Clone, PartialEq, uniffi::Record)]
pub struct FlowerTask {
    /// `train`, `evaluate` or `query`, and after a dot an action's name.
    pub kind: String,
    /// The run it belongs to, in decimal.
    pub run: String,
    /// The round, if the server says it.
    pub round: Option<i64>,
    /// The packed array: in training and evaluating the version's file.
    pub payload: Option<Vec<u8>>,
    /// What the server's config says.
    pub config: HashMap<String, FlowerValue>,
}

impl From<Task> for FlowerTask {
    fn from(task: Task) -> Self {
        let round = task.round().map(bytes);
        let config = task.config.into_iter().map(|(key, value)| (key, value.into())).collect();
        Self { round, run: task.run.to_string(), kind: task.kind, payload: task.payload, config }
    }
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FlowerEnd {
    /// The SuperLink has the reply, or wants nothing more of it.
    Delivered,
    /// The SuperLink knows that it was not done.
    Refused {
        /// Why, as it was told.
        reason: String,
    },
    /// Nobody waits for it any more.
    Dropped {
        /// Why.
        reason: String,
    },
}

impl From<End> for FlowerEnd {
    fn from(end: End) -> Self {
        match end {
            End::Delivered => Self::Delivered,
            End::Refused(reason) => Self::Refused { reason },
            End::Dropped(reason) => Self::Dropped { reason: reason.into() },
        }
    }
}

/// What to do next.
#[derive(Clone, PartialEq, uniffi::Enum)]
pub enum FlowerStep {
    /// Store this in place of what was stored, whole or not at all, before the next step.
    Save {
        /// For `saved` of the next start.
        state: Vec<u8>,
    },
    /// Make a request, then tell what came of it.
    Send {
        /// The request.
        request: FlowerRequest,
    },
    /// Nothing to do for so long.
    Wait {
        /// Milliseconds.
        millis: i64,
    },
    /// Work to do, then reply. Meanwhile go on with steps, which keep the node online.
    Work {
        /// The work.
        task: FlowerTask,
    },
    /// The last task is over.
    Over {
        /// What became of it.
        end: FlowerEnd,
    },
    /// The node has left; it says so from now on.
    Left,
}

impl From<Step> for FlowerStep {
    fn from(step: Step) -> Self {
        match step {
            Step::Save(state) => Self::Save { state },
            Step::Send(flower::Request { path, headers, body }) => {
                let headers = headers.into_iter().map(|(name, value)| (name.into(), value));
                let headers = headers.collect();
                Self::Send { request: FlowerRequest { path: path.into(), headers, body } }
            }
            // Rounded up: less than a millisecond is not nothing.
            Step::Wait(time) => {
                let millis = time.as_nanos().div_ceil(1_000_000);
                Self::Wait { millis: i64::try_from(millis).unwrap_or(i64::MAX) }
            }
            Step::Work(task) => Self::Work { task: task.into() },
            Step::Over(end) => Self::Over { end: end.into() },
            Step::Left => Self::Left,
        }
    }
}

/// A number that a node reports.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Enum)]
pub enum FlowerMetric {
    /// How many.
    Count {
        /// 0 or more.
        value: i64,
    },
    /// How much.
    Real {
        /// It.
        value: f64,
    },
}

/// What a node answers to a task.
#[derive(Clone, PartialEq, uniffi::Enum)]
pub enum FlowerReply {
    /// It is done.
    Done {
        /// The packed array: after training a delta's file.
        #[uniffi(default = None)]
        payload: Option<Vec<u8>>,
        /// Numbers, `num-examples` among them; the names are those of all nodes.
        metrics: HashMap<String, FlowerMetric>,
    },
    /// It can't be done. The SuperLink, and whoever runs it, reads the reason.
    Refused {
        /// Nothing of the user's.
        reason: String,
    },
}

/// How to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum FlowerLeave {
    /// Offline once the last reply was fetched, which is asked for 200 s at most: the `ServerApp`
    /// does not wait for what was not replied to.
    Offline,
    /// Without a word: the node is taken for online until its heartbeat lapses, and goes on with its
    /// task when it comes back. For an app that may be gone for a while.
    Online,
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FlowerStatus {
    /// What the SuperLink calls this node, once it does, in decimal.
    pub node_id: Option<String>,
    /// Why there was no usable answer lately; none when all is well.
    pub trouble: Option<String>,
    /// Requests since the client was opened.
    pub requests: i64,
    /// Bytes of their bodies.
    pub sent_bytes: i64,
    /// Bytes of the answers' bodies.
    pub received_bytes: i64,
}

/// A node of Flower. `now_millis` is the time since 1970 by the device's clock, which may be wrong.
#[derive(uniffi::Object)]
pub struct FlowerClient {
    client: Mutex<Client>,
    key: PublicKey,
    signer: Arc<dyn SigningCallback>,
}

#[uniffi::export]
impl FlowerClient {
    /// A node of the signer's key, which must be P-256, as it was when `saved` was; none for a new
    /// one.
    #[uniffi::constructor]
    pub async fn open(
        signer: Arc<dyn SigningCallback>,
        saved: Option<Vec<u8>>,
        options: FlowerOptions,
    ) -> Result<Arc<Self>, EpiphyteError> {
        let open = move || {
            let key = signer.public_key()?.key()?;
            let client = Client::new(&key, saved.as_deref(), options.try_into()?)?;
            Ok(Arc::new(Self { client: Mutex::new(client), key, signer }))
        };
        worker::run("open", open).await
    }

    /// What to do next. A request whose answer was not given counts as one without an answer. What
    /// the signer throws, this throws.
    pub async fn poll(self: Arc<Self>, now_millis: i64) -> Result<FlowerStep, EpiphyteError> {
        let poll = move || {
            let signing = Signing::of(&*self.signer, self.key.clone());
            let step = lock(&self.client).poll(time(now_millis)?, &signing);
            step.map(FlowerStep::from)
                .map_err(|error| signing.thrown.take().unwrap_or_else(|| error.into()))
        };
        worker::run("poll", poll).await
    }

    /// Takes what came of the request that was to be sent; none where no answer came.
    pub async fn answer(
        self: Arc<Self>,
        now_millis: i64,
        answer: Option<FlowerAnswer>,
    ) -> Result<(), EpiphyteError> {
        let take = move || {
            let answer = match &answer {
                None => Answer::Nothing,
                Some(FlowerAnswer { status, date, body }) => {
                    let status = count("status", *status)?;
                    Answer::Http { status, date: date.as_deref(), body }
                }
            };
            lock(&self.client).answer(time(now_millis)?, answer);
            Ok(())
        };
        worker::run("answer", take).await
    }

    /// The work is done, or can't be. Saved and sent by the next steps.
    pub async fn reply(
        self: Arc<Self>,
        now_millis: i64,
        reply: FlowerReply,
    ) -> Result<(), EpiphyteError> {
        let put = move || {
            let now = time(now_millis)?;
            let (payload, metrics) = match reply {
                FlowerReply::Refused { reason } => {
                    return Ok(lock(&self.client).refuse(now, &reason)?);
                }
                FlowerReply::Done { payload, metrics } => (payload, metrics),
            };
            let metrics = metrics.iter().map(|(name, metric)| match metric {
                FlowerMetric::Count { value } => {
                    Ok((name.as_str(), Metric::Count(count("metrics", *value)?)))
                }
                FlowerMetric::Real { value } => Ok((name.as_str(), Metric::Real(*value))),
            });
            let metrics = metrics.collect::<Result<Vec<_>, EpiphyteError>>()?;
            let reply = flower::Reply { payload: payload.as_deref(), metrics: &metrics };
            Ok(lock(&self.client).reply(now, &reply)?)
        };
        worker::run("reply", put).await
    }

    /// Leaves, by the next steps. A reply that is being sent is sent first; a second call leaves at
    /// once.
    pub async fn leave(self: Arc<Self>, how: FlowerLeave) -> Result<(), EpiphyteError> {
        let leave = move || {
            lock(&self.client).leave(match how {
                FlowerLeave::Offline => Leave::Offline,
                FlowerLeave::Online => Leave::Online,
            });
            Ok(())
        };
        worker::run("leave", leave).await
    }

    /// How it stands.
    pub async fn status(self: Arc<Self>) -> Result<FlowerStatus, EpiphyteError> {
        let ask = move || {
            let client = lock(&self.client);
            let traffic = client.traffic();
            Ok(FlowerStatus {
                node_id: client.node_id().map(|id| id.to_string()),
                trouble: client.trouble().map(String::from),
                requests: bytes(traffic.requests),
                sent_bytes: bytes(traffic.sent_bytes),
                received_bytes: bytes(traffic.received_bytes),
            })
        };
        worker::run("status", ask).await
    }
}

fn time(now_millis: i64) -> Result<Duration, EpiphyteError> {
    Ok(Duration::from_millis(count("now_millis", now_millis)?))
}
