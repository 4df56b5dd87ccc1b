//! What a node does with what it is answered.

use std::time::Duration;

use super::call::{Call, PUBLIC_KEY_IN_USE, Problem, REGISTRATION_DISABLED, decoded};
use super::client::{Client, Phase, unseen};
use super::object::id_of;
use super::patience::Timer;
use super::proto::{
    HeartbeatResponse, Node, PullMessagesResponse, PullObjectResponse, PushMessagesResponse,
    PushObjectResponse,
};
use super::saved::{Inbox, Outbox};
use super::{Answer, auth};
use crate::error::Error;

/// Seconds between two clocks that are not worth a correction: `date` has whole ones.
const CLOSE: u64 = 2;
/// Times that clock or node may be set right in a row.
const CORRECTIONS: u32 = 3;
/// The longest time that a SuperLink may ask a node to wait, in seconds.
const LONGEST_POLL: u64 = 60;
/// The longest time between two attempts.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Seconds for which a SuperLink waits for a reply's objects.
const PUSH_SESSION: f64 = 180.0;

type Taken = Result<(), Problem>;

fn trouble(reason: &str) -> Problem {
    Problem::Trouble(reason.into())
}

impl Client {
    pub(super) fn take(&mut self, call: Call, object: &str, now: Duration, answer: Answer<'_>) {
        let taken = match call {
            Call::Register => self.registered(answer),
            Call::Activate => self.activated(now, answer),
            Call::Heartbeat => self.alive(now, answer),
            Call::Deactivate => self.offline(now, answer),
            Call::Pull => self.pulled(now, answer),
            Call::PullObject => self.object_came(object, answer),
            Call::Look => self.looked(now, answer),
            Call::Confirm => decoded::<()>(answer).map(|()| self.phase = Phase::Ready),
            Call::Push => self.accepted(answer),
            Call::PushObject => self.stored(object, now, answer),
        };
        match taken {
            Ok(()) => {
                self.trouble.clear(call);
                if !matches!(call, Call::Register | Call::Activate) {
                    self.corrections = 0;
                }
            }
            Err(problem) => self.bear(call, now, answer, problem),
        }
    }

    /// Gets over a problem, or gives up.
    fn bear(&mut self, call: Call, now: Duration, answer: Answer<'_>, problem: Problem) {
        match problem {
            Problem::Trouble(reason) => {
                self.reason = format!("{}: {reason}", call.name());
                // Half a heartbeat at most: a node in trouble is still one that is online.
                let longest = LONGEST_RETRY.min(self.options.heartbeat / 2);
                self.trouble.add(call, now, longest, &self.public_key);
                // It may have been answered with a message that nobody will give out again.
                self.is_unsure |= call == Call::Pull;
                let lasted = self.trouble.lasted(now);
                if self.options.patience.is_some_and(|patience| lasted > patience) {
                    let seconds = lasted.as_secs();
                    self.fail(call, format!("{reason}, for {seconds} seconds; start again later"));
                }
            }
            Problem::Denied => self.denied(call, now, answer),
            Problem::RunOver => self.dropped("its run is over"),
            Problem::Unmet(code) => self
                .fail(call, format!("refused, by Flower's code {code}; see the SuperLink's log")),
            Problem::Fatal(reason) => self.fail(call, reason),
        }
    }

    fn fail(&mut self, call: Call, reason: String) {
        self.failure = Some(Error::SuperLink { call: call.name(), reason });
    }

    /// The signature was not taken: the clock is wrong, or the SuperLink does not know the node.
    fn denied(&mut self, call: Call, now: Duration, answer: Answer<'_>) {
        let date = if let Answer::Http { date, .. } = answer { date } else { None };
        let seconds = |time: u64| i64::try_from(time).unwrap_or_default();
        let skew = date
            .and_then(auth::seconds_of)
            .map_or(self.skew, |theirs| seconds(theirs) - seconds(now.as_secs()));
        self.corrections += 1;
        if self.corrections > CORRECTIONS {
            let reason = "it does not take this node's signature; see that its key is registered \
                and its clock right";
            self.fail(call, reason.into());
        } else if skew.abs_diff(self.skew) > CLOSE {
            self.skew = skew;
        } else if matches!(call, Call::Register | Call::Activate) {
            self.fail(call, "it does not take this node's key; see that it is registered".into());
        } else {
            self.forget();
        }
    }

    /// The SuperLink has no such node any more: what it asked for is void.
    fn forget(&mut self) {
        if self.saved.inbox.is_some() || self.saved.outbox.is_some() {
            self.dropped("the SuperLink does not know this node any more");
        }
        (self.saved.node_id, self.saved.is_open, self.is_dirty) = (0, false, true);
        (self.saved.pushed, self.is_unsure) = (None, false);
        (self.phase, self.heartbeat, self.may_be_online) = (Phase::Register, None, false);
    }

    fn registered(&mut self, answer: Answer<'_>) -> Taken {
        match decoded::<Node>(answer) {
            Ok(node) => {
                (self.saved.node_id, self.is_dirty) = (node.node_id, true);
            }
            Err(Problem::Unmet(PUBLIC_KEY_IN_USE)) => self.may_be_online = true,
            // Whoever runs it registers the keys.
            Err(Problem::Unmet(REGISTRATION_DISABLED)) => {}
            Err(problem) => return Err(problem),
        }
        self.phase = Phase::Activate;
        Ok(())
    }

    fn activated(&mut self, now: Duration, answer: Answer<'_>) -> Taken {
        match decoded::<Node>(answer) {
            Ok(Node { node_id: 0 }) => Err(trouble("no id was given")),
            Ok(node) => {
                self.saved.node_id = node.node_id;
                self.is_dirty = true;
                self.online(now);
                Ok(())
            }
            Err(Problem::Unmet(_)) if self.may_be_online => Err(trouble(
                "an earlier start of this node counts as online until its heartbeat lapses",
            )),
            Err(Problem::Unmet(_)) => {
                (self.saved.is_open, self.is_dirty) = (false, true);
                let reason = "it does not activate this node; register its key there first \
                    (`flwr supernode register`)";
                Err(Problem::Fatal(reason.into()))
            }
            Err(problem) => Err(problem),
        }
    }

    fn alive(&mut self, now: Duration, answer: Answer<'_>) -> Taken {
        let HeartbeatResponse { success } = decoded(answer)?;
        if !success {
            self.forget();
        } else if matches!(self.phase, Phase::Return | Phase::StayOffline(_)) {
            self.online(now);
        } else {
            self.beat(now);
        }
        Ok(())
    }

    fn beat(&mut self, now: Duration) {
        // As the SuperNode of Flower: a little early.
        self.heartbeat = Some(Timer::new(now, self.options.heartbeat.mul_f64(0.8)));
    }

    /// Goes on where it was.
    fn online(&mut self, now: Duration) {
        self.beat(now);
        self.is_dirty |= !std::mem::replace(&mut self.saved.is_open, true);
        let idle = Phase::Idle(Timer::default());
        self.phase = match (&self.saved.outbox, &self.saved.inbox) {
            (Some(_), _) => Phase::Push,
            (None, Some(inbox)) if inbox.missing().is_some() => Phase::PullObjects,
            (None, Some(_)) => Phase::Confirm,
            (None, None) => idle,
        };
    }

    fn offline(&mut self, now: Duration, answer: Answer<'_>) -> Taken {
        match decoded::<()>(answer) {
            // It was offline already.
            Ok(()) | Err(Problem::Unmet(_)) => {}
            Err(problem) => return Err(problem),
        }
        (self.heartbeat, self.is_unsure) = (None, false);
        self.phase = match self.leaving {
            Some(_) => {
                (self.saved.is_open, self.is_dirty) = (false, true);
                Phase::Left
            }
            None => Phase::StayOffline(unseen(now)),
        };
        Ok(())
    }

    fn pulled(&mut self, now: Duration, answer: Answer<'_>) -> Taken {
        let PullMessagesResponse { reconnect, mut messages, mut trees } = decoded(answer)?;
        let asked = reconnect.map_or(0, |reconnect| reconnect.reconnect.min(LONGEST_POLL));
        let poll = self.options.poll.max(Duration::from_secs(asked));
        self.phase = Phase::Idle(Timer::new(now, poll));
        let Some(message) = messages.pop() else {
            if self.is_unsure {
                self.phase = match self.unfetched(now) {
                    // As long as it is not fetched there is no other message.
                    Some(_) => Phase::Settle(Timer::default()),
                    None => Phase::GoOffline,
                };
            }
            return Ok(());
        };
        let unusable = "the answer holds a message that can't be used";
        let inbox = trees.pop().and_then(|tree| Inbox::new(message, tree));
        let inbox = inbox.ok_or_else(|| trouble(unusable))?;
        let metadata = inbox.metadata().ok_or_else(|| trouble(unusable))?;
        if metadata.dst_node_id != self.saved.node_id || !messages.is_empty() {
            return Err(trouble(unusable));
        }
        if metadata.created_at + metadata.ttl <= self.their_seconds(now) {
            self.dropped("its time was over");
            return Ok(());
        }
        // It is this one that is waited for: none was lost.
        self.is_unsure = false;
        (self.saved.inbox, self.is_dirty) = (Some(inbox), true);
        self.phase = Phase::PullObjects;
        Ok(())
    }

    /// Whoever fetches a reply deletes it.
    fn looked(&mut self, now: Duration, answer: Answer<'_>) -> Taken {
        let is_there = match decoded::<PullObjectResponse>(answer) {
            Ok(response) => response.found,
            Err(Problem::RunOver) => false,
            Err(problem) => return Err(problem),
        };
        let again = Timer::new(now, self.options.poll);
        match (is_there, self.leaving) {
            (false, _) => self.settled(),
            (true, Some(_)) => self.phase = Phase::Settle(again),
            (true, None) => self.phase = Phase::Idle(again),
        }
        Ok(())
    }

    fn object_came(&mut self, object: &str, answer: Answer<'_>) -> Taken {
        let PullObjectResponse { found, available, content } = decoded(answer)?;
        if !found {
            self.dropped("the SuperLink has its content no more");
            return Ok(());
        }
        if !available {
            return Err(trouble("its content is not there yet"));
        }
        if id_of(&content) != object {
            return Err(trouble("an object does not have the SHA-256 that is its name"));
        }
        let Some(inbox) = &mut self.saved.inbox else { return Ok(()) };
        if inbox.n_bytes() + content.len() > self.options.max_bytes {
            self.dropped("it is larger than this node takes");
            return Ok(());
        }
        inbox.add(object.into(), content);
        if inbox.missing().is_none() {
            // Saved before the SuperLink may forget it.
            (self.phase, self.is_dirty) = (Phase::Confirm, true);
        }
        Ok(())
    }

    fn accepted(&mut self, answer: Answer<'_>) -> Taken {
        let PushMessagesResponse { objects_to_push, session_id } = decoded(answer)?;
        let Some(outbox) = &self.saved.outbox else { return Ok(()) };
        let (left, is_wanted) = (outbox.among(&objects_to_push), false);
        match left.is_empty() {
            false => self.phase = Phase::PushObjects { session: session_id, left, is_wanted },
            // At first nobody has a reply's own object.
            true if self.announcements == 1 => self.dropped("nobody waits for it any more"),
            // It has them all; or the reply was announced before and is being fetched, and then
            // objects are taken without a session alone, as long as the first one lasts.
            true => {
                let (session, left) = (String::new(), outbox.names());
                self.phase = Phase::PushObjects { session, left, is_wanted };
            }
        }
        Ok(())
    }

    fn stored(&mut self, object: &str, now: Duration, answer: Answer<'_>) -> Taken {
        let PushObjectResponse { stored } = decoded(answer)?;
        let Phase::PushObjects { session, left, is_wanted } = &mut self.phase else {
            return Ok(());
        };
        *is_wanted |= stored;
        if !stored && !session.is_empty() {
            // The session is over: the message is announced again.
            self.phase = Phase::Push;
            return Err(trouble("an object was not stored"));
        }
        left.retain(|id| id != object);
        if left.is_empty() {
            let is_wanted = *is_wanted || self.may_be_whole(now);
            match is_wanted {
                true => self.delivered(now),
                false => self.dropped("the SuperLink wants nothing of it any more"),
            }
        }
        Ok(())
    }

    /// Whether a reply of which nothing is wanted can be there whole: it is not so old that what
    /// there was of it may be gone.
    fn may_be_whole(&self, now: Duration) -> bool {
        let metadata = self.saved.outbox.as_ref().and_then(Outbox::metadata);
        metadata.is_some_and(|reply| self.their_seconds(now) - reply.created_at < PUSH_SESSION)
    }
}
