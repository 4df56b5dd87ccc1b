//! Requests by name, and what an answer's status means.

use prost::Message;
use serde::Deserialize;

use super::Answer;

/// A request of the Fleet API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Register,
    Activate,
    Heartbeat,
    Deactivate,
    Pull,
    PullObject,
    /// Whether the last reply is still there to be fetched.
    Look,
    Confirm,
    Push,
    PushObject,
}

impl Call {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Register => "/v1/fleet/register-node",
            Self::Activate => "/v1/fleet/activate-node",
            Self::Heartbeat => "/v1/fleet/send-node-heartbeat",
            Self::Deactivate => "/v1/fleet/deactivate-node",
            Self::Pull => "/v1/fleet/pull-messages",
            Self::PullObject | Self::Look => "/v1/fleet/pull-object",
            Self::Confirm => "/v1/fleet/confirm-message-received",
            Self::Push => "/v1/fleet/push-messages",
            Self::PushObject => "/v1/fleet/push-object",
        }
    }

    /// The path's last part.
    pub(super) fn name(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }
}

/// Why there is nothing to go on with.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// It may go better later.
    Trouble(String),
    /// Key, clock or node are not what the SuperLink knows.
    Denied,
    /// The run is over.
    RunOver,
    /// A condition is not met, by Flower's code for it.
    Unmet(u64),
    /// It will not go better.
    Fatal(String),
}

/// Flower's codes.
pub(super) const PUBLIC_KEY_IN_USE: u64 = 23;
pub(super) const REGISTRATION_DISABLED: u64 = 2001;
const RUN_STATUS_NOT_ALLOWED: u64 = 2007;

#[derive(Default, Deserialize)]
struct Said {
    code: Option<u64>,
    detail: Option<String>,
}

/// The message in an answer.
pub(super) fn decoded<T: Message + Default>(answer: Answer<'_>) -> Result<T, Problem> {
    let Answer::Http { status, body, .. } = answer else {
        return Err(Problem::Trouble("no answer".into()));
    };
    if (200..300).contains(&status) {
        let garbage = |_| Problem::Trouble("the answer is not one of a SuperLink".into());
        return T::decode(body).map_err(garbage);
    }
    let said: Said = serde_json::from_slice(body).unwrap_or_default();
    let detail = said.detail.map_or_else(String::new, |detail| format!(": {}", shown(&detail)));
    let text = format!("HTTP status {status}{detail}");
    Err(match (status, said.code) {
        (401, _) => Problem::Denied,
        (403, Some(RUN_STATUS_NOT_ALLOWED)) => Problem::RunOver,
        (404 | 405, _) => Problem::Fatal(format!(
            "{text}; there is no Fleet API over HTTP at this address, which flwr has from 1.40 on"
        )),
        (412, code) => Problem::Unmet(code.unwrap_or_default()),
        (408 | 425 | 429 | 500.., _) => Problem::Trouble(text),
        _ => Problem::Fatal(text),
    })
}

/// What a server says of an error, short enough for a line.
fn shown(detail: &str) -> String {
    detail.chars().filter(|c| !c.is_control()).take(160).collect()
}
