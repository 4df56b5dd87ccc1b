//! What handles hold until they are closed. Closing never waits: what is running finishes first,
//! and the last to let go frees.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};

use crate::EpiphyteError;
use crate::answer::Shared;
use crate::worker::{self, Promise, lock};

/// The runtime's engine, for as long as anything uses it. Whoever has a session of it has one of
/// these, so that the engine's memory is known to be free when the last of them goes.
pub(crate) struct Lease {
    /// Always there before the drop.
    engine: Option<Arc<epiphyte::Engine>>,
    dependents: Mutex<Vec<Weak<dyn Dependent>>>,
    closed: AtomicBool,
    freed: Arc<Promise<()>>,
}

/// What closes with its engine.
pub(crate) trait Dependent: Send + Sync {
    /// At once, and without waiting.
    fn close(&self);
}

impl Lease {
    /// `freed` is kept when the last user is gone and the memory free.
    pub(crate) fn new(engine: Arc<epiphyte::Engine>, freed: Arc<Promise<()>>) -> Arc<Self> {
        let (dependents, closed) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { engine: Some(engine), dependents, closed, freed })
    }

    /// Closes `dependent` with the engine.
    pub(crate) fn adopt(&self, dependent: Weak<dyn Dependent>) {
        let mut dependents = lock(&self.dependents);
        dependents.retain(|known| known.strong_count() > 0);
        dependents.push(dependent);
        drop(dependents);
        if self.is_closed() {
            self.close();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let dependents = std::mem::take(&mut *lock(&self.dependents));
        dependents.iter().filter_map(Weak::upgrade).for_each(|dependent| dependent.close());
    }
}

impl Deref for Lease {
    type Target = Arc<epiphyte::Engine>;

    fn deref(&self) -> &Self::Target {
        self.engine.as_ref().expect("taken by the drop only")
    }
}

impl Drop for Lease {
    /// Leaving a device takes a while: it is done elsewhere.
    fn drop(&mut self) {
        let (engine, freed) = (self.engine.take(), Arc::clone(&self.freed));
        let free = move || {
            drop(engine);
            freed.set(());
        };
        // Without a thread it was freed by dropping the closure, here.
        if worker::spawn(free).is_err() {
            self.freed.set(());
        }
    }
}

/// A session of the runtime's, shared by its handle, its calls and its answer.
pub(crate) struct Slot {
    held: Mutex<Option<Held>>,
    closed: AtomicBool,
    /// An answer has it.
    claimed: AtomicBool,
    answer: Mutex<Weak<Shared>>,
    tokens: AtomicUsize,
}

/// A session, and before it what it lives on.
pub(crate) struct Held {
    pub(crate) session: epiphyte::Session,
    pub(crate) lease: Arc<Lease>,
}

/// A session that nobody else has now.
pub(crate) struct Turn<'a> {
    slot: &'a Slot,
    held: Option<MutexGuard<'a, Option<Held>>>,
}

impl Deref for Turn<'_> {
    type Target = Held;

    fn deref(&self) -> &Held {
        self.held.as_deref().and_then(Option::as_ref).expect("checked by `Slot::turn`")
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Held {
        self.held.as_deref_mut().and_then(Option::as_mut).expect("checked by `Slot::turn`")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.slot.tokens.store(self.session.tokens().len(), Ordering::Relaxed);
        self.held = None;
        self.slot.let_go_if_closed();
    }
}

impl Slot {
    /// One that closes with its engine.
    pub(crate) fn new(session: epiphyte::Session, lease: Arc<Lease>) -> Arc<Self> {
        let slot = Arc::new(Self {
            tokens: AtomicUsize::new(session.tokens().len()),
            held: Mutex::new(Some(Held { session, lease: Arc::clone(&lease) })),
            closed: AtomicBool::new(false),
            claimed: AtomicBool::new(false),
            answer: Mutex::default(),
        });
        let weak = Arc::downgrade(&slot);
        lease.adopt(weak);
        slot
    }

    /// Tokens that the session holds, those of a running answer as they are handed out.
    pub(crate) fn token_count(&self) -> usize {
        self.tokens.load(Ordering::Relaxed)
    }

    pub(crate) fn add_token(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Errors: [`EpiphyteError::Closed`].
    pub(crate) fn check_open(&self) -> Result<(), EpiphyteError> {
        match self.closed.load(Ordering::SeqCst) {
            true => Err(EpiphyteError::closed("session")),
            false => Ok(()),
        }
    }

    /// Waits for a call that has it.
    ///
    /// Errors: [`EpiphyteError::Closed`], also after a panic in a call.
    pub(crate) fn turn(&self) -> Result<Turn<'_>, EpiphyteError> {
        self.check_open()?;
        let held = self.held.lock().unwrap_or_else(|panicked| {
            self.closed.store(true, Ordering::SeqCst);
            let mut held = panicked.into_inner();
            *held = None;
            held
        });
        match *held {
            Some(_) => Ok(Turn { slot: self, held: Some(held) }),
            None => Err(EpiphyteError::closed("session")),
        }
    }

    /// Runs `work` with the session, off the caller's thread.
    ///
    /// Errors: [`EpiphyteError::Closed`]; [`EpiphyteError::Busy`] while an answer has it; those of
    /// `work`.
    pub(crate) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&mut Held) -> Result<T, EpiphyteError> + Send + 'static,
    ) -> Result<T, EpiphyteError> {
        self.check_open()?;
        if self.claimed.load(Ordering::SeqCst) {
            return Err(answering());
        }
        let slot = Arc::clone(self);
        worker::run(name, move || work(&mut *slot.turn()?)).await
    }

    /// Takes the session for an answer.
    ///
    /// Errors: [`EpiphyteError::Closed`]; [`EpiphyteError::Busy`] while another has it.
    pub(crate) fn claim(self: &Arc<Self>) -> Result<Claim, EpiphyteError> {
        self.check_open()?;
        match self.claimed.swap(true, Ordering::SeqCst) {
            true => Err(answering()),
            false => Ok(Claim(Arc::clone(self))),
        }
    }

    /// The answer that has it, to be told when the session closes.
    pub(crate) fn answered_by(&self, answer: &Arc<Shared>) {
        *lock(&self.answer) = Arc::downgrade(answer);
        if self.closed.load(Ordering::SeqCst) {
            answer.close();
        }
    }

    /// Whoever closes finds the session free, or whoever has it finds it closed when he is done.
    fn let_go_if_closed(&self) {
        if !self.closed.load(Ordering::SeqCst) {
            return;
        }
        let held = match self.held.try_lock() {
            Ok(mut held) => held.take(),
            Err(TryLockError::Poisoned(held)) => held.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        };
        drop(held);
    }
}

impl Dependent for Slot {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let answer = lock(&self.answer).upgrade();
        if let Some(answer) = answer {
            answer.close();
        }
        self.let_go_if_closed();
    }
}

fn answering() -> EpiphyteError {
    EpiphyteError::busy("session", "an answer", "take all of it, or cancel it first")
}

/// A session that an answer has, until this is dropped.
pub(crate) struct Claim(pub(crate) Arc<Slot>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::sync::Arc;

    use pollster::block_on;

    use super::{Lease, Slot};
    use crate::{EpiphyteError, worker::Promise};

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny_llama.gguf");

    /// A fault in one call is an error of that call and closes its session; the engine goes on.
    #[test]
    fn a_panic_is_an_error_and_closes_the_session() {
        let options = epiphyte::EngineOptions {
            gpu: epiphyte::GpuOptions::from_env().unwrap(),
            ..Default::default()
        };
        let engine = epiphyte::Engine::open(TINY, options).unwrap();
        let freed = Arc::<Promise<()>>::default();
        let lease = Lease::new(engine, Arc::clone(&freed));
        let slot = || Slot::new(lease.session(), Arc::clone(&lease));
        let (broken, sound) = (slot(), slot());
        let fault = block_on(broken.call("push_text", |held| -> Result<(), EpiphyteError> {
            held.session.push_text("the user's text").unwrap();
            panic!("the user's text");
        }));
        match fault {
            Err(EpiphyteError::Internal { text, .. }) => {
                assert!(text.contains("push_text") && !text.contains("user"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        let after = block_on(broken.call("tokens", |_| Ok(())));
        assert!(matches!(after, Err(EpiphyteError::Closed { .. })), "{after:?}");
        block_on(sound.call("push_text", |held| Ok(held.session.push_text("the sea")?))).unwrap();
        assert!(sound.token_count() > 0);
        // Nothing of either keeps the engine.
        drop((broken, sound, lease));
        block_on(freed.wait());
    }
}
