//! A running answer of one session or several: a thread that computes the next token when it is
//! asked for one, and whoever asks. A token belongs to the session once it is handed out; one that
//! was computed and never taken is forgotten.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use epiphyte::engine::BatchToken;
use epiphyte::{Batch, CancelToken, Error, GenerateOptions, Sequence};

use crate::EpiphyteError;
use crate::adapter::AdapterChange;
use crate::held::{Claim, Slot, Turn};
use crate::options::{AnswerStats, FinishReason};
use crate::worker::{self, Promise, lock, remember};

/// What the thread and those who ask have in common.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// There is something for the thread to do.
    asked: Condvar,
}

#[derive(Default)]
struct State {
    /// Someone waits for a token.
    wanted: bool,
    /// Computed and not taken yet, with what its answer took so far.
    ready: Option<(BatchToken, AnswerStats)>,
    /// Adapters to change between two tokens.
    changes: VecDeque<Arc<Pending>>,
    /// What went wrong, for the first who asks.
    failed: Option<EpiphyteError>,
    /// The thread gives no more.
    over: bool,
    /// It has left the sessions, and what it took beside them is free.
    left: bool,
    /// Nobody wants more.
    cancelled: bool,
    lanes: Vec<Lane>,
    wakers: Vec<Waker>,
}

/// One session's part.
struct Lane {
    claim: Option<Claim>,
    cancel: CancelToken,
    cancelled: bool,
    /// Tokens handed out.
    handed: usize,
    stats: AnswerStats,
}

/// A change of adapters and whoever waits for it.
struct Pending {
    index: usize,
    change: AdapterChange,
    done: Promise<Result<(), EpiphyteError>>,
}

enum Task {
    Next,
    Change(Arc<Pending>),
    End,
}

/// The handle of a running answer; dropping it cancels.
pub(crate) struct Answer(Arc<Shared>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Answer {
    /// Claims the sessions and starts the thread. What is wrong with the settings is said when the
    /// first token is asked for.
    ///
    /// Errors: [`EpiphyteError::Closed`], [`EpiphyteError::Busy`], [`EpiphyteError::Internal`].
    pub(crate) fn start(
        sequences: Vec<(Arc<Slot>, GenerateOptions)>,
    ) -> Result<Self, EpiphyteError> {
        let lane = |(slot, options): &(Arc<Slot>, GenerateOptions)| {
            let (claim, cancel) = (Some(slot.claim()?), options.cancel.clone());
            let stats = AnswerStats::default();
            Ok(Lane { claim, cancel, cancelled: false, handed: 0, stats })
        };
        let lanes = sequences.iter().map(lane).collect::<Result<_, EpiphyteError>>()?;
        let state = Mutex::new(State { lanes, ..State::default() });
        let shared = Arc::new(Shared { state, asked: Condvar::new() });
        sequences.iter().for_each(|(slot, _)| slot.answered_by(&shared));
        let ending = Ending(Arc::clone(&shared));
        worker::spawn(move || ending.0.run(sequences))?;
        Ok(Self(shared))
    }

    /// The next token; none once the answer is over. A future that is dropped loses none.
    ///
    /// Errors: as [`epiphyte::Batch::new`] and its iterator, once; [`EpiphyteError::Background`], which
    /// does not end it; [`EpiphyteError::Closed`].
    pub(crate) async fn next(&self) -> Result<Option<BatchToken>, EpiphyteError> {
        poll_fn(|context| self.0.ask(context.waker(), State::take)).await
    }

    /// The next token if there is one and `fits` says so. If there is nothing yet, `waker` hears
    /// when to ask again; none is whatever [`Answer::next`] has to say.
    pub(crate) fn poll_token(
        &self,
        waker: &Waker,
        fits: impl FnOnce(&BatchToken) -> bool,
    ) -> Poll<Option<BatchToken>> {
        self.0.ask(waker, |state| match &state.ready {
            Some((token, _)) => Some(if fits(token) { state.take_token() } else { None }),
            None => state.is_ending().then_some(None),
        })
    }

    /// Changes the adapters of one session between two tokens.
    ///
    /// Errors: as [`epiphyte::Batch::set_adapters`]; [`EpiphyteError::Closed`] once it is over.
    pub(crate) async fn set_adapters(
        &self,
        index: usize,
        change: AdapterChange,
    ) -> Result<(), EpiphyteError> {
        let pending = Arc::new(Pending { index, change, done: Promise::default() });
        {
            let mut state = lock(&self.0.state);
            if state.over || state.cancelled {
                return Err(EpiphyteError::closed("answer"));
            }
            state.changes.push_back(Arc::clone(&pending));
            self.0.asked.notify_one();
        }
        pending.done.take().await
    }

    /// Ends it: no token comes once this has returned.
    pub(crate) fn cancel(&self) {
        self.0.cancel();
    }

    /// Ends one session's part.
    pub(crate) fn cancel_one(&self, index: usize) {
        let mut state = lock(&self.0.state);
        if let Some(lane) = state.lanes.get_mut(index) {
            lane.cancel();
        }
        state.ready.take_if(|(token, _)| token.index == index);
    }

    /// What a session's part took so far; none for one that is not there.
    pub(crate) fn stats(&self, index: usize) -> Option<AnswerStats> {
        let state = lock(&self.0.state);
        let lane = state.lanes.get(index)?;
        let cancelled = lane.cancelled.then_some(FinishReason::Cancelled);
        let finish_reason = lane.stats.finish_reason.or(cancelled);
        Some(AnswerStats { finish_reason, ..lane.stats })
    }
}

impl Lane {
    fn cancel(&mut self) {
        self.cancelled = true;
        self.cancel.cancel();
    }
}

impl State {
    /// What there is for whoever asks, if there is anything.
    fn take(&mut self) -> Option<Result<Option<BatchToken>, EpiphyteError>> {
        if let Some(token) = self.take_token() {
            return Some(Ok(Some(token)));
        }
        self.is_ending().then(|| self.failed.take().map_or(Ok(None), Err))
    }

    fn take_token(&mut self) -> Option<BatchToken> {
        let (token, stats) = self.ready.take()?;
        let lane = &mut self.lanes[token.index];
        lane.handed += 1;
        lane.stats = stats;
        if let Some(claim) = &lane.claim {
            claim.0.add_token();
        }
        self.release_if_over();
        Some(token)
    }

    /// Without a token there is something to say: an error, or that no more come. Whoever hears
    /// that finds the sessions free, unless he did not wait for it.
    fn is_ending(&self) -> bool {
        self.failed.is_some() || self.left || self.cancelled
    }

    /// The sessions are free for other calls, which wait until the thread has left them.
    fn release_if_over(&mut self) {
        if self.cancelled || (self.over && self.ready.is_none()) {
            self.lanes.iter_mut().for_each(|lane| lane.claim = None);
        }
    }

    /// Gives the changes that come too late, to be told once the state is free.
    #[must_use]
    fn end(&mut self, error: Option<EpiphyteError>) -> VecDeque<Arc<Pending>> {
        self.failed = self.failed.take().or(error);
        (self.over, self.left) = (true, true);
        self.release_if_over();
        std::mem::take(&mut self.changes)
    }
}

/// Wakes whoever waits. Only once the state is free: they look at it at once.
fn wake(mut state: MutexGuard<'_, State>) {
    let wakers = std::mem::take(&mut state.wakers);
    drop(state);
    wakers.into_iter().for_each(Waker::wake);
}

/// Tells of changes that the answer did not wait for.
fn refuse(late: VecDeque<Arc<Pending>>) {
    late.iter().for_each(|pending| pending.done.set(Err(EpiphyteError::closed("answer"))));
}

impl Shared {
    /// What `take` finds; while that is nothing, the thread is asked for it and `waker` hears of it.
    fn ask<T>(&self, waker: &Waker, take: impl FnOnce(&mut State) -> Option<T>) -> Poll<T> {
        let mut state = lock(&self.state);
        let taken = take(&mut state);
        // A thread that has given its last token waits for that to be taken.
        let heard = taken.is_none() || state.over;
        if taken.is_none() {
            remember(&mut state.wakers, waker);
            state.wanted = true;
        }
        drop(state);
        if heard {
            self.asked.notify_one();
        }
        taken.map_or(Poll::Pending, Poll::Ready)
    }

    fn cancel(&self) {
        let mut state = lock(&self.state);
        if state.over && state.ready.is_none() {
            return;
        }
        state.cancelled = true;
        state.ready = None;
        state.lanes.iter_mut().for_each(Lane::cancel);
        state.release_if_over();
        wake(state);
        self.asked.notify_one();
    }

    /// The session or its engine is closed.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        if !state.over && !state.cancelled {
            state.failed = Some(EpiphyteError::closed("session"));
        }
        drop(state);
        self.cancel();
    }

    /// Waits until there is something to do.
    fn task(&self) -> Task {
        let idle = |state: &mut State| {
            let next = state.wanted && state.ready.is_none() && !state.over;
            let end = state.cancelled || (state.over && state.ready.is_none());
            state.changes.is_empty() && !next && !end
        };
        let waited = self.asked.wait_while(lock(&self.state), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.cancelled || (state.over && state.ready.is_none()) {
            return Task::End;
        }
        match state.changes.pop_front() {
            Some(change) => Task::Change(change),
            None => {
                state.wanted = false;
                Task::Next
            }
        }
    }

    /// The thread of an answer.
    fn run(&self, sequences: Vec<(Arc<Slot>, GenerateOptions)>) {
        let (slots, options): (Vec<_>, Vec<_>) = sequences.into_iter().unzip();
        let turns = slots.iter().map(|slot| slot.turn()).collect::<Result<Vec<_>, _>>();
        let mut turns = match turns {
            Ok(turns) => turns,
            Err(error) => return self.end(Some(error)),
        };
        let starts: Vec<usize> = turns.iter().map(|turn| turn.session.tokens().len()).collect();
        let failed = self.answer(&mut turns, options).err();
        // No token is ready any more, so that the counts stay.
        let state = lock(&self.state);
        for ((turn, start), lane) in turns.iter_mut().zip(starts).zip(&state.lanes) {
            turn.session.truncate(start + lane.handed);
        }
        drop(state);
        drop(turns);
        self.end(failed);
    }

    fn end(&self, error: Option<EpiphyteError>) {
        let mut state = lock(&self.state);
        let late = state.end(error);
        wake(state);
        refuse(late);
    }

    fn answer(
        &self,
        turns: &mut [Turn<'_>],
        options: Vec<GenerateOptions>,
    ) -> Result<(), EpiphyteError> {
        let sequences = turns.iter_mut().zip(options);
        let sequences =
            sequences.map(|(turn, options)| Sequence { session: &mut turn.session, options });
        let mut batch = Batch::new(sequences.collect())?;
        loop {
            match self.task() {
                Task::End => return Ok(()),
                Task::Change(pending) => {
                    let change = &pending.change;
                    pending.done.set(change.to(|change| batch.set_adapters(pending.index, change)));
                }
                Task::Next => match batch.next().transpose() {
                    Err(error @ Error::Background) => self.refuse(error.into()),
                    next => self.hand_out(next?, &batch),
                },
            }
        }
    }

    /// Tells whoever asked that there is no token for now; the answer goes on.
    fn refuse(&self, error: EpiphyteError) {
        let mut state = lock(&self.state);
        state.failed = state.failed.take().or(Some(error));
        wake(state);
    }

    /// Leaves a token for whoever asked; none is the end.
    fn hand_out(&self, next: Option<BatchToken>, batch: &Batch<'_>) {
        let stats = |index| batch.stats(index).map(AnswerStats::from).unwrap_or_default();
        let mut state = lock(&self.state);
        match next {
            Some(token) if state.cancelled || state.lanes[token.index].cancelled => {
                // It came too late; whoever waits for another one still does.
                state.wanted = true;
                return;
            }
            Some(token) => {
                let stats = stats(token.index);
                state.over = batch.is_over();
                state.ready = Some((token, stats));
            }
            None => {
                (0..).zip(&mut state.lanes).for_each(|(index, lane)| lane.stats = stats(index));
                state.over = true;
            }
        }
        wake(state);
    }
}

/// An answer's thread; one that panics ends the answer.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some(EpiphyteError::internal("generate")));
        }
    }
}
