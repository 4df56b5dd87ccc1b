//! Speculation without a second model (Saxena 2023, "Prompt Lookup Decoding"): where the last tokens
//! have come before in the session, what followed them then is proposed, and one pass tells how much
//! of it the model would have said itself. Ids are those of single steps: each row of such a pass has
//! the position, and so the noise, of its step, and as many parts of attention.
//!
//! It goes on for as long as it gains time, by what passes have taken on this engine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernels::attention::CHUNK;
use crate::kernels::matvec::{COLS, MAX_COLS};
use crate::model::activations::LOGIT_ROWS;
use crate::model::attend::Run;
use crate::model::pages::PAGE_LEN;

use super::Engine;
use super::batch::Batch;
use super::executor::Row;
use super::lane::Lane;
use super::working::MAX_BIASES;

/// Most tokens of a draft: a pass of more rows is computed in other ways.
const MOST: usize = MAX_COLS as usize - 1;

/// Unless someone asks for more or fewer: of so many rows, one pass over the weights serves all.
fn usual(caps: &Caps) -> usize {
    if caps.cooperative_matrix.is_some() { MOST } else { COLS as usize - 1 }
}

/// Last tokens that must have come before: where drafts have paid, and where they have not yet, since
/// two tokens often come again by chance.
const LEAST: [usize; 2] = [2, 3];
/// As many are compared.
const LONGEST: usize = 4;
/// Steps' time that an answer may lose before it stops to look up, and that gains count for at most:
/// what has paid for long may stop at once, too.
const STAKE: f32 = 2.0;

/// Rows of a usual draft's pass whose kernels are better compiled before the first one, which gains
/// less than that takes. On a software GPU it takes too long for an answer that may have no draft.
pub(super) fn rows(caps: &Caps) -> Option<u32> {
    (caps.cooperative_matrix.is_some() && !caps.software).then(|| usual(caps) as u32 + 1)
}

/// Whether an answer looks tokens up, and what that has brought.
pub(super) struct Lookup {
    most: usize,
    /// Whatever it costs.
    is_asked_for: bool,
    /// Steps' time gained, less what was lost.
    balance: f32,
    pub(super) drafted: usize,
    pub(super) accepted: usize,
    /// The next step begins anew because of it.
    interrupts: bool,
}

impl Lookup {
    /// As [`super::GenerateOptions::prompt_lookup_num_tokens`] has it.
    ///
    /// Errors: [`Error::InvalidArgument`] for more than there can be.
    pub(super) fn new(most: Option<usize>, caps: &Caps) -> Result<Self> {
        if most.is_some_and(|most| most > MOST) {
            let reason = format!("out of range; at most {MOST}, 0 for none");
            return Err(Error::InvalidArgument { name: "prompt_lookup_num_tokens", reason });
        }
        Ok(Self {
            most: most.unwrap_or_else(|| usual(caps)),
            is_asked_for: most.is_some(),
            balance: 0.0,
            drafted: 0,
            accepted: 0,
            interrupts: false,
        })
    }

    /// Most tokens of the next draft.
    fn most(&self, times: &StepTimes) -> usize {
        let pays = || self.balance > -STAKE && times.of(1).is_some();
        if self.is_asked_for || (self.most > 0 && pays()) { self.most } else { 0 }
    }

    /// Last tokens that must have come before.
    fn least(&self) -> usize {
        LEAST[usize::from(!self.is_asked_for && self.balance <= 0.0)]
    }

    /// A pass that took `cost` steps' time has given `tokens`.
    fn settle(&mut self, tokens: usize, cost: f32) {
        self.balance = (self.balance + tokens as f32 - cost).min(STAKE);
    }
}

/// Seconds that a caller waits for passes of so many rows, on average of late.
#[derive(Default)]
pub(super) struct StepTimes(Mutex<[Measured; MAX_COLS as usize + 1]>);

#[derive(Clone, Copy, Default)]
enum Measured {
    #[default]
    Never,
    /// It may have compiled its kernels.
    Once,
    Seconds(f32),
}

impl StepTimes {
    /// Part of a new time in the average.
    const WEIGHT: f32 = 0.2;

    fn note(&self, rows: usize, time: Duration) {
        let new = time.as_secs_f32();
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times[rows] = match times[rows] {
            Measured::Never => Measured::Once,
            Measured::Once => Measured::Seconds(new),
            Measured::Seconds(old) => Measured::Seconds(old + Self::WEIGHT * (new - old)),
        };
    }

    fn of(&self, rows: usize) -> Option<f32> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner)[rows] {
            Measured::Seconds(seconds) => Some(seconds),
            _ => None,
        }
    }

    /// How many steps a time is.
    fn in_steps(&self, seconds: f32) -> Option<f32> {
        self.of(1).map(|step| seconds / step.max(f32::MIN_POSITIVE))
    }
}

/// What followed the last tokens, `least` or more, when they came before: the longest such run of
/// tokens counts, of equals the last. A draft that reaches the end goes on with its own beginning.
fn propose(tokens: &[u32], least: usize, most: usize) -> Vec<u32> {
    let alike = |end: usize| {
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        pairs.take(LONGEST).take_while(|(then, now)| then == now).count()
    };
    let mut found = (least - 1, tokens.len());
    for end in (1..tokens.len()).rev() {
        let length = alike(end);
        if length > found.0 {
            found = (length, end);
        }
        if length == LONGEST {
            break;
        }
    }
    let from = found.1;
    let Some(period) = tokens.len().checked_sub(from).filter(|period| *period > 0) else {
        return Vec::new();
    };
    (0..most).map(|i| tokens[from + i % period]).collect()
}

impl Engine {
    internal! {
        /// Takes it that passes of so many rows, of at most 8, take so long, until some have.
        pub fn assume_step_time(&self, rows: usize, time: Duration) {
            (0..2).for_each(|_| self.step_times.note(rows, time));
        }
    }
}

impl Lane<'_> {
    /// Most tokens that may be proposed, so that a pass over them computes each as its step would.
    fn most_drafted(&self) -> usize {
        let (session, engine) = (&self.session, &self.session.engine);
        let len = session.tokens.len();
        let of_answer = self.options.max_tokens.saturating_sub(self.generated + 1);
        let of_context = engine.context().saturating_sub(len);
        let of_parts = len.next_multiple_of(CHUNK as usize) - len;
        // Windows have no page more than they need.
        let of_page = PAGE_LEN - 1 - len.saturating_sub(1) % PAGE_LEN;
        let of_window = session.window().map_or(usize::MAX, |_| of_page);
        let biases = self.options.sampling.logit_bias.len();
        let of_biases = MAX_BIASES.checked_div(biases).unwrap_or(usize::MAX).saturating_sub(1);
        [of_answer, of_context, of_parts, of_window, of_biases]
            .into_iter()
            .fold(self.lookup.most(&engine.step_times), usize::min)
    }
}

impl Batch<'_> {
    /// What the only active lane may say next; nothing where there is no telling, or several.
    pub(super) fn draft(&self) -> Vec<u32> {
        let &[i] = &self.active[..] else { return Vec::new() };
        let lane = &self.lanes[i];
        match lane.most_drafted() {
            0 => Vec::new(),
            most => propose(&lane.session.tokens, lane.lookup.least(), most),
        }
    }

    /// Finds out in one pass what the only active lane says next, if it is what `draft` says as far
    /// as that goes, and one token more. False where there is no room, or its grammar knows better.
    pub(super) fn verify(&mut self, mut draft: Vec<u32>) -> Result<bool> {
        let &[i] = &self.active[..] else { return Ok(false) };
        let engine = Arc::clone(&self.engine);
        let masks = self.lanes[i].grammar.as_ref().map(|grammar| grammar.ahead(&draft));
        draft.truncate(masks.as_ref().map_or(draft.len(), |masks| masks.len() - 1));
        if draft.is_empty() {
            return Ok(false);
        }
        // Pages that are added from here on are not in the tables of the rows that are loaded.
        self.id = engine.run_id();
        self.prepare()?;
        if self.active.is_empty() {
            return Ok(true);
        }
        let (began, rows) = (Instant::now(), draft.len() + 1);
        let _claim = engine.steps.take();
        let Some(mut turn) = self.turn(&engine)? else { return Ok(false) };
        let lane = &mut self.lanes[i];
        let session = &mut *lane.session;
        let (kv_len, len) = (session.kv_len, session.tokens.len());
        if turn.reserve(engine.gpu(), &mut session.pages, kv_len, kv_len + rows).is_err() {
            return Ok(false);
        }
        let context = [&session.tokens[..], &draft].concat();
        let row = |m: usize| {
            let (token, context) = (context[len - 1 + m], &context[..len + m]);
            Row { token, position: (kv_len + m) as u32, context, ..lane.row() }
        };
        let loaded: Vec<Row<'_>> = (0..rows).map(row).collect();
        turn.load_rows(engine.gpu(), engine.run_id(), &loaded);
        for (m, mask) in masks.iter().flatten().enumerate() {
            turn.write_mask(engine.gpu(), m, mask);
        }
        let run = |m| Run { row0: m as u32, count: 1, positions: (kv_len + m + 1) as u32 };
        let (runs, samplers) = ((0..rows).map(run).collect::<Vec<_>>(), vec![lane.sampler; rows]);
        let flight = self.run_step(turn, &runs, &samplers)?;
        let mut ids = [0; LOGIT_ROWS];
        engine.gpu().take(&self.readbacks[flight.slot], flight.index, &mut ids[..rows])?;
        let accepted = draft.iter().zip(&ids).take_while(|(draft, id)| draft == id).count();
        self.verified.extend(ids[..=accepted].iter().map(|&id| (id, flight.how)));
        self.settle(i, [draft.len(), accepted], began.elapsed());
        Ok(true)
    }

    fn settle(&mut self, lane: usize, [drafted, accepted]: [usize; 2], time: Duration) {
        let (times, lookup) = (&self.engine.step_times, &mut self.lanes[lane].lookup);
        lookup.drafted += drafted;
        lookup.accepted += accepted;
        let rows = drafted + 1;
        times.note(rows, time);
        // Neither what a first pass gains counts, nor what it costs.
        let cost = times.of(rows).and_then(|seconds| times.in_steps(seconds));
        lookup.interrupts = cost.is_some();
        if let Some(cost) = cost {
            lookup.settle(accepted + 1, cost);
        }
    }

    /// A step's tokens were waited for so long; `is_anew`: its rows were loaded before.
    pub(super) fn note_step(&mut self, time: Duration, is_anew: bool) {
        let &[i] = &self.active[..] else { return };
        let (times, lookup) = (&self.engine.step_times, &mut self.lanes[i].lookup);
        if !is_anew {
            times.note(1, time);
        } else if std::mem::take(&mut lookup.interrupts)
            && let Some(cost) = times.in_steps(time.as_secs_f32())
        {
            lookup.settle(1, cost.max(1.0));
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_proposed() {
        assert_eq!(propose(&[1, 2, 3, 4, 9, 1, 2, 3], 2, 3), [4, 9, 1]);
        // A longer run counts more than a later one, and of equals the last does.
        assert_eq!(propose(&[7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], 2, 1), [5]);
        assert_eq!(propose(&[7, 1, 2, 5, 7, 1, 2, 6, 7, 1, 2], 2, 1), [6]);
        assert_eq!(propose(&[5, 1, 2, 6, 1, 2], 3, 2), [0; 0]);
        // It goes on as it began.
        assert_eq!(propose(&[4, 1, 2, 1, 2], 2, 5), [1, 2, 1, 2, 1]);
        assert_eq!(propose(&[3, 3, 3], 2, 2), [3, 3]);
        for none in [&[][..], &[1], &[1, 1], &[1, 2, 3, 4, 5, 2]] {
            assert_eq!(propose(none, 2, 4), [0; 0], "{none:?}");
        }
    }

    #[test]
    fn it_stops_once_it_has_lost_its_stake_and_gains_are_soon_forgotten() {
        let times = StepTimes::default();
        let mut lookup = Lookup::new(None, &Caps::PHONE).unwrap();
        assert_eq!(lookup.most(&times), 0, "before a step was measured");
        for _ in 0..2 {
            times.note(1, Duration::from_millis(10));
        }
        assert_eq!(lookup.most(&times), usual(&Caps::PHONE));
        assert_eq!(lookup.least(), LEAST[1]);
        (0..100).for_each(|_| lookup.settle(4, 1.5));
        assert_eq!(lookup.least(), LEAST[0]);
        assert_eq!(lookup.most(&times), usual(&Caps::PHONE));
        let mut lost = 0;
        while lookup.most(&times) > 0 {
            lookup.settle(1, 1.5);
            lost += 1;
        }
        assert_eq!(lost, 8, "twice its stake");
        assert!(Lookup::new(Some(0), &Caps::PHONE).unwrap().most(&times) == 0);
        let mut asked_for = Lookup::new(Some(5), &Caps::PHONE).unwrap();
        asked_for.settle(1, 99.0);
        assert_eq!(asked_for.most(&StepTimes::default()), 5);
        assert!(Lookup::new(Some(MOST + 1), &Caps::PHONE).is_err());
    }

    #[test]
    fn times_leave_out_what_a_first_pass_compiles() {
        let times = StepTimes::default();
        times.note(4, Duration::from_secs(9));
        assert_eq!(times.of(4), None);
        times.note(4, Duration::from_millis(20));
        times.note(4, Duration::from_millis(30));
        assert!((times.of(4).unwrap() - 0.022).abs() < 1e-6);
    }
}
