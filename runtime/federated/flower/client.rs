//! The node: what it asks next, and what it does with what it is given.

use std::time::Duration;

use prost::Message;

use super::call::Call;
use super::object::{content, sendable};
use super::patience::{Timer, Trouble};
use super::proto::{FlowerMessage, Metadata, ReplyError};
use super::saved::{Inbox, Outbox, Pushed, Saved};
use super::{Answer, End, Leave, Options, Reply, Request, Step, Task, Traffic, auth};
use crate::error::{Error, Result};
use crate::federated::{KeyKind, PublicKey, Signer};

/// How long a `ServerApp` may take to see that a node is offline: it looks every three seconds, but
/// for up to twelve it may wait for another node's objects.
const UNTIL_SEEN: Duration = Duration::from_secs(30);
/// After so long nobody will fetch a reply: a SuperLink gives up objects that are waited for after
/// 180 seconds, and whoever waited looks again.
const UNTIL_FETCHED: Duration = Duration::from_secs(200);
/// What the SuperLink allows as time between signs of life, in seconds.
const HEARTBEATS: std::ops::RangeInclusive<u64> = 10..=1800;
/// Flower's code of an error in a node's app.
const APP_RAISED: i64 = 2;

/// A node of Flower that makes no request itself; see the [module](super).
pub struct Client {
    pub(super) options: Options,
    /// As PEM.
    pub(super) public_key: String,
    pub(super) saved: Saved,
    pub(super) is_dirty: bool,
    pub(super) phase: Phase,
    /// What was asked and not answered yet, and about which object.
    pub(super) asked: Option<(Call, String)>,
    /// Until the next sign of life; `None` while the node is offline.
    pub(super) heartbeat: Option<Timer>,
    pub(super) trouble: Trouble,
    /// What the last trouble was.
    pub(super) reason: String,
    /// Seconds that the SuperLink's clock is ahead.
    pub(super) skew: i64,
    /// Times that clock or node were set right since something went well.
    pub(super) corrections: u32,
    /// That the node may still count as online from before, though nobody here knows its id.
    pub(super) may_be_online: bool,
    /// That a message may have been given out in an answer that was lost.
    pub(super) is_unsure: bool,
    /// How often the reply was announced, at least.
    pub(super) announcements: u32,
    pub(super) leaving: Option<Leave>,
    pub(super) over: Option<End>,
    pub(super) failure: Option<Error>,
    traffic: Traffic,
}

/// Where the node is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Register,
    Activate,
    /// It is known from before: a sign of life brings it online.
    Return,
    /// Asks whether the last reply was fetched, which going offline would take away.
    Settle(Timer),
    GoOffline,
    StayOffline(Timer),
    Idle(Timer),
    PullObjects,
    Confirm,
    /// A task to hand out.
    Ready,
    /// It was handed out.
    Work {
        since: Duration,
    },
    Push,
    PushObjects {
        session: String,
        left: Vec<String>,
        /// Whether any was taken.
        is_wanted: bool,
    },
    Left,
}

impl Client {
    /// A node of this key, which must be P-256, as it was when `saved` was; `None` for a new one.
    ///
    /// Errors: [`Error::InvalidArgument`] for another kind of key or an impossible option;
    /// [`Error::InvalidDelta`] for a state that is damaged or another key's.
    pub fn new(key: &PublicKey, saved: Option<&[u8]>, options: Options) -> Result<Self> {
        let invalid = |name, reason: String| Err(Error::InvalidArgument { name, reason });
        if key.kind() != KeyKind::P256 {
            return invalid("key", "Ed25519, which Flower does not take; make a P-256 key".into());
        }
        if !HEARTBEATS.contains(&options.heartbeat.as_secs()) {
            let (low, high) = (HEARTBEATS.start(), HEARTBEATS.end());
            return invalid("heartbeat", format!("a SuperLink allows {low} to {high} seconds"));
        }
        let saved = saved.map_or_else(|| Ok(Saved::new(key)), |bytes| Saved::read(bytes, key))?;
        let is_busy = saved.inbox.is_some() || saved.outbox.is_some();
        let phase = if saved.node_id == 0 { Phase::Register } else { Phase::Return };
        Ok(Self {
            options,
            public_key: key.to_pem()?,
            may_be_online: saved.is_open,
            // It was killed where an answer may have been on its way.
            is_unsure: saved.is_open && !is_busy && saved.node_id != 0,
            // Of one from before a restart nobody knows.
            announcements: u32::from(saved.outbox.is_some()),
            saved,
            is_dirty: false,
            phase,
            asked: None,
            heartbeat: None,
            trouble: Trouble::default(),
            reason: String::new(),
            skew: 0,
            corrections: 0,
            leaving: None,
            over: None,
            failure: None,
            traffic: Traffic::default(),
        })
    }

    /// What the SuperLink calls this node, once it does.
    pub fn node_id(&self) -> Option<u64> {
        Some(self.saved.node_id).filter(|id| *id != 0)
    }

    /// What went over the wire since the client was made.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Why there was no usable answer lately, for people; nothing when all is well.
    pub fn trouble(&self) -> Option<&str> {
        (!self.trouble.is_none()).then_some(self.reason.as_str())
    }

    /// What to do next. `now` is the time since 1970 by the device's clock, which may be wrong. A
    /// request whose answer was not given counts as one without an answer.
    ///
    /// Errors: [`Error::SuperLink`] for what does not go better by asking again, or has not for
    /// [`Options::patience`]; those of the signer. What was saved is good for another start.
    pub fn poll(&mut self, now: Duration, signer: &dyn Signer) -> Result<Step> {
        if std::mem::take(&mut self.is_dirty) {
            return Ok(Step::Save(self.saved.encode_to_vec()));
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if let Some(end) = self.over.take() {
            return Ok(Step::Over(end));
        }
        if let Some((call, object)) = self.asked.take() {
            self.take(call, &object, now, Answer::Nothing);
            return self.poll(now, signer);
        }
        if self.leave_if_wanted() {
            return self.poll(now, signer);
        }
        if matches!(self.phase, Phase::Settle(_)) && self.unfetched(now).is_none() {
            self.settled();
        }
        self.step(now, signer)
    }

    /// What the phase asks for, once nothing else is to be said.
    fn step(&mut self, now: Duration, signer: &dyn Signer) -> Result<Step> {
        if matches!(self.phase, Phase::Left) {
            return Ok(Step::Left);
        }
        let left = self.trouble.left(now);
        if !left.is_zero() {
            return Ok(Step::Wait(left));
        }
        let until_beat = self.heartbeat.map(|timer| timer.left(now));
        if until_beat == Some(Duration::ZERO) {
            return self.send(Call::Heartbeat, String::new(), now, signer);
        }
        let wait = |time: Duration| Ok(Step::Wait(until_beat.map_or(time, |beat| beat.min(time))));
        let call = match &self.phase {
            Phase::Settle(timer) | Phase::StayOffline(timer) | Phase::Idle(timer)
                if !timer.left(now).is_zero() =>
            {
                return wait(timer.left(now));
            }
            Phase::Work { .. } => return wait(self.options.heartbeat),
            Phase::Ready => return self.hand_out(now, signer),
            Phase::Register => Call::Register,
            Phase::Activate => Call::Activate,
            Phase::Return | Phase::StayOffline(_) => Call::Heartbeat,
            Phase::Settle(_) => Call::Look,
            Phase::GoOffline => Call::Deactivate,
            Phase::Idle(_) => Call::Pull,
            Phase::PullObjects => Call::PullObject,
            Phase::Confirm => Call::Confirm,
            Phase::Push => Call::Push,
            Phase::PushObjects { .. } => Call::PushObject,
            Phase::Left => return Ok(Step::Left),
        };
        let object = match &self.phase {
            Phase::PullObjects => self.saved.inbox.as_ref().and_then(Inbox::missing),
            Phase::PushObjects { left, .. } => left.first().cloned(),
            Phase::Settle(_) => self.unfetched(now).map(|pushed| pushed.message_id.clone()),
            _ => None,
        };
        self.send(call, object.unwrap_or_default(), now, signer)
    }

    /// Takes what came of the request that [`Client::poll`] asked for.
    pub fn answer(&mut self, now: Duration, answer: Answer<'_>) {
        let Some((call, object)) = self.asked.take() else { return };
        if let Answer::Http { body, .. } = answer {
            self.traffic.received_bytes += body.len() as u64;
        }
        self.take(call, &object, now, answer);
    }

    /// The work is done. Saved and sent by the next steps of [`Client::poll`].
    ///
    /// Errors: [`Error::InvalidArgument`] when no task is being worked on.
    pub fn reply(&mut self, now: Duration, reply: &Reply<'_>) -> Result<()> {
        self.put_out(now, Some(reply), String::new())
    }

    /// The work can't be done. The SuperLink, and whoever runs it, reads the reason.
    ///
    /// Errors: as [`Client::reply`].
    pub fn refuse(&mut self, now: Duration, reason: &str) -> Result<()> {
        self.put_out(now, None, reason.into())
    }

    /// Leaves, by the next steps of [`Client::poll`]. A reply that is being sent is sent first; a
    /// second call leaves at once.
    pub fn leave(&mut self, how: Leave) {
        let again = self.leaving.replace(how).is_some();
        if again {
            self.phase = Phase::Left;
        }
    }

    /// Goes on leaving; says whether anything changed by it.
    fn leave_if_wanted(&mut self) -> bool {
        let Some(how) = self.leaving else { return false };
        let is_well = self.trouble.is_none();
        let is_sending = matches!(self.phase, Phase::Push | Phase::PushObjects { .. });
        let is_going = matches!(self.phase, Phase::Settle(_) | Phase::GoOffline);
        if matches!(self.phase, Phase::Left) || is_well && is_sending {
            return false;
        }
        if how == Leave::Offline && is_well && self.heartbeat.is_some() {
            if !is_going {
                self.is_dirty |= self.saved.inbox.take().is_some();
                self.phase = Phase::Settle(Timer::default());
            }
            return !is_going;
        }
        // Where an answer may have been lost, the next start must know of it.
        let is_unsure =
            self.is_unsure || is_going || matches!(self.phase, Phase::Return | Phase::Activate);
        if is_well && !is_unsure {
            self.is_dirty |= std::mem::take(&mut self.saved.is_open);
        }
        self.phase = Phase::Left;
        true
    }

    fn send(
        &mut self,
        call: Call,
        object: String,
        now: Duration,
        signer: &dyn Signer,
    ) -> Result<Step> {
        let ahead = Duration::from_secs(self.skew.unsigned_abs());
        let theirs = match self.skew < 0 {
            true => now.saturating_sub(ahead),
            false => now.saturating_add(ahead),
        };
        if call == Call::Activate && !self.saved.is_open {
            // Should the answer be lost, the next start knows that there may be one.
            (self.saved.is_open, self.is_dirty) = (true, true);
            return self.poll(now, signer);
        }
        if call == Call::Push {
            self.announcements = self.announcements.saturating_add(1);
        }
        let body = self.body(call, &object);
        let headers = auth::headers(&self.public_key, theirs, signer)?;
        self.traffic.requests += 1;
        self.traffic.sent_bytes += body.len() as u64;
        self.asked = Some((call, object));
        Ok(Step::Send(Request { path: call.path(), headers, body }))
    }

    /// Gives the task out, or refuses it where it can't be read.
    fn hand_out(&mut self, now: Duration, signer: &dyn Signer) -> Result<Step> {
        self.phase = Phase::Work { since: now };
        let Some(inbox) = &self.saved.inbox else {
            self.phase = Phase::Idle(Timer::default());
            return self.poll(now, signer);
        };
        let metadata = inbox.metadata().cloned().unwrap_or_default();
        match content(&metadata.message_id, &inbox.objects(), self.options.max_bytes) {
            Ok(content) => Ok(Step::Work(Task {
                kind: metadata.message_type,
                run: metadata.run_id,
                payload: content.payload,
                config: content.config,
            })),
            Err(reason) => {
                self.put_out(now, None, reason.into())?;
                self.poll(now, signer)
            }
        }
    }

    fn put_out(&mut self, now: Duration, reply: Option<&Reply<'_>>, refusal: String) -> Result<()> {
        let (Phase::Work { since }, Some(inbox)) = (&self.phase, &self.saved.inbox) else {
            let reason = "no task is being worked on".into();
            return Err(Error::InvalidArgument { name: "reply", reason });
        };
        let runtime = now.saturating_sub(*since).as_secs_f64();
        let asked = inbox.metadata().cloned().unwrap_or_default();
        let created_at = self.their_seconds(now);
        let ttl = asked.ttl - (created_at - asked.created_at);
        (self.is_dirty, self.saved.inbox) = (true, None);
        if ttl <= 0.0 {
            self.dropped("its time was over");
            return Ok(());
        }
        let metadata = Metadata {
            run_id: asked.run_id,
            message_id: String::new(),
            src_node_id: asked.dst_node_id,
            dst_node_id: asked.src_node_id,
            reply_to_message_id: asked.message_id,
            group_id: asked.group_id,
            ttl,
            message_type: asked.message_type,
            created_at,
            src_task_id: asked.dst_task_id,
            dst_task_id: asked.src_task_id,
        };
        let error = ReplyError { code: APP_RAISED, reason: refusal.clone() };
        let error = reply.is_none().then_some(error);
        let message = FlowerMessage { metadata: Some(metadata), content: None, error };
        self.saved.outbox = Some(Outbox::new(sendable(message, reply), runtime, refusal));
        self.announcements = 0;
        self.phase = Phase::Push;
        Ok(())
    }

    /// Seconds since 1970 by the SuperLink's clock.
    pub(super) fn their_seconds(&self, now: Duration) -> f64 {
        now.as_secs_f64() + self.skew as f64
    }

    /// The SuperLink has the whole reply.
    pub(super) fn delivered(&mut self, now: Duration) {
        let Some(outbox) = self.saved.outbox.take() else { return };
        let pushed = outbox.metadata().map(|metadata| Pushed {
            run_id: metadata.run_id,
            message_id: metadata.message_id.clone(),
            at: now.as_secs_f64(),
        });
        (self.saved.pushed, self.is_dirty) = (pushed, true);
        let refusal = outbox.refusal;
        let end = if refusal.is_empty() { End::Delivered } else { End::Refused(refusal) };
        self.over = Some(end);
        self.phase = Phase::Idle(Timer::new(now, self.options.poll));
    }

    /// Nobody waits for the task any more.
    pub(super) fn dropped(&mut self, reason: &'static str) {
        (self.saved.inbox, self.saved.outbox, self.is_dirty) = (None, None, true);
        self.over = Some(End::Dropped(reason));
        self.phase = Phase::Idle(Timer::default());
    }

    /// The last reply, as long as someone may come and fetch it.
    pub(super) fn unfetched(&self, now: Duration) -> Option<&Pushed> {
        let is_waited_for = |pushed: &&Pushed| {
            let from = Duration::try_from_secs_f64(pushed.at).unwrap_or_default();
            !Timer::new(from, UNTIL_FETCHED).left(now).is_zero()
        };
        self.saved.pushed.as_ref().filter(is_waited_for)
    }

    /// Nobody needs the last reply any more: offline, or once more for work, which may have come
    /// since it was fetched.
    pub(super) fn settled(&mut self) {
        self.is_dirty |= self.saved.pushed.take().is_some();
        self.phase = match self.leaving {
            Some(_) => Phase::GoOffline,
            None => Phase::Idle(Timer::default()),
        };
    }
}

/// Until a `ServerApp` has surely seen that a node is offline.
pub(super) fn unseen(now: Duration) -> Timer {
    Timer::new(now, UNTIL_SEEN)
}
