//! The node's steps, carried out: what is saved, sent and waited for.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::connection::{Answered, Connection};
use crate::output;
use epiphyte::error::Result;
use epiphyte::federated::SigningKey;
use epiphyte::federated::flower::{Answer, Client, End, Step, Task};
use epiphyte::format::write_whole;

/// What a step leaves to others.
pub(super) enum Event {
    Idle(Duration),
    Work(Task),
    Over(End),
    Left,
}

pub(super) struct Node {
    pub(super) client: Client,
    pub(super) connection: Connection,
    pub(super) key: SigningKey,
    /// Where its state is kept.
    pub(super) file: PathBuf,
    /// What was said of trouble last.
    pub(super) said: Option<String>,
    pub(super) was_online: bool,
}

impl Node {
    /// Goes on until there is something for others to do.
    ///
    /// Errors: as [`Client::poll`] and [`Connection::post`]; [`epiphyte::Error::Io`] where the state
    /// can't be kept.
    pub(super) fn advance(&mut self) -> Result<Event> {
        loop {
            match self.client.poll(now(), &self.key)? {
                Step::Save(bytes) => write_whole(&self.file, &bytes)?,
                Step::Send(request) => {
                    let answered = self.connection.post(&request)?;
                    self.client.answer(now(), as_answer(answered.as_ref().ok()));
                    self.tell(answered.err());
                }
                Step::Wait(time) => return Ok(Event::Idle(time)),
                Step::Work(task) => return Ok(Event::Work(task)),
                Step::Over(end) => return Ok(Event::Over(end)),
                Step::Left => return Ok(Event::Left),
            }
        }
    }

    /// Says once that the node is online, or why there is no usable answer.
    fn tell(&mut self, reason: Option<String>) {
        let trouble = self.client.trouble().map(|trouble| match &reason {
            Some(reason) => format!("{trouble} ({reason})"),
            None => trouble.into(),
        });
        if trouble != self.said {
            match &trouble {
                Some(trouble) => output::note(&format!("warning: {trouble}; trying again")),
                None => output::note("the SuperLink answers again"),
            }
            self.said = trouble;
        }
        if let (Some(id), false) = (self.client.node_id(), self.was_online) {
            self.was_online = true;
            output::note(&format!("node {id}"));
        }
    }
}

fn as_answer(answered: Option<&Answered>) -> Answer<'_> {
    match answered {
        Some(Answered { status, date, body }) => {
            Answer::Http { status: *status, date: date.as_deref(), body }
        }
        None => Answer::Nothing,
    }
}

/// Since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
