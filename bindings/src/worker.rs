//! Work off the caller's thread: one of ours for each call that may wait, and futures that only wait
//! for it. They need no runtime of their own.
//!
//! The crate `blocking` does much the same, but lets a thread go after half a second, and drivers
//! hold on to memory for each that they have seen; and it hands a panic, whose text may quote a
//! user's, on to whoever waits. With it come seven more crates.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use crate::EpiphyteError;

/// The value, also after a panic of whoever had it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that is set once, and the tasks that wait for it.
pub(crate) struct Promise<T>(Mutex<(Option<T>, Vec<Waker>)>);

impl<T> Default for Promise<T> {
    fn default() -> Self {
        Self(Mutex::new((None, Vec::new())))
    }
}

impl<T> Promise<T> {
    /// The first value counts.
    pub(crate) fn set(&self, value: T) {
        let mut state = lock(&self.0);
        state.0.get_or_insert(value);
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    async fn wait_for<R>(&self, read: impl Fn(&mut Option<T>) -> Option<R>) -> R {
        poll_fn(|context| {
            let (slot, wakers) = &mut *lock(&self.0);
            match read(slot) {
                Some(value) => Poll::Ready(value),
                None => {
                    remember(wakers, context.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The value, for the one that takes it.
    pub(crate) async fn take(&self) -> T {
        self.wait_for(Option::take).await
    }

    /// Until it is set.
    pub(crate) async fn wait(&self) {
        self.wait_for(|slot| slot.is_some().then_some(())).await;
    }
}

/// Adds a waker that is not there yet.
pub(crate) fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|known| known.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

/// How long a thread waits for more to do before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// Threads that are kept for a while: drivers hold on to a little memory for each thread that ever
/// used them, and a new one takes its time.
#[derive(Default)]
struct Threads {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Threads that wait for one.
    idle: usize,
}

static THREADS: LazyLock<Threads> = LazyLock::new(Threads::default);

impl Threads {
    /// What a thread does: its first job, and others for as long as some come.
    fn work(&self, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            // Whoever waits for it has heard of a panic: what the job held was dropped by it.
            let _ = catch_unwind(AssertUnwindSafe(job));
            next = self.next();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = lock(&self.waiting);
        waiting.idle += 1;
        let none = |waiting: &mut Waiting| waiting.jobs.is_empty();
        let waited = self.came.wait_timeout_while(waiting, IDLE, none);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        waiting.idle -= 1;
        waiting.jobs.pop_front()
    }
}

/// Runs `work` on a thread that has nothing else to do, or on a new one.
///
/// Errors: [`EpiphyteError::Internal`] when the system has none.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), EpiphyteError> {
    let mut waiting = lock(&THREADS.waiting);
    if waiting.idle > waiting.jobs.len() {
        waiting.jobs.push_back(Box::new(work));
        THREADS.came.notify_one();
        return Ok(());
    }
    drop(waiting);
    let thread = thread::Builder::new().name("epiphyte".into());
    let started = thread.spawn(move || THREADS.work(Box::new(work)));
    started.map(drop).map_err(|_| EpiphyteError::internal("the system has no thread left"))
}

/// Runs `work` on another thread; nothing waits but the future. Dropping that leaves the work
/// running.
///
/// Errors: those of `work`; [`EpiphyteError::Internal`] naming the call when it panics.
pub(crate) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, EpiphyteError> + Send + 'static,
) -> Result<T, EpiphyteError> {
    let promise = Arc::new(Promise::default());
    let kept = Kept { promise: Arc::clone(&promise), name };
    spawn(move || kept.promise.set(work()))?;
    promise.take().await
}

/// A promise that is kept also when its thread panics. What the panic says may quote a user's text,
/// so it goes nowhere.
struct Kept<T> {
    promise: Arc<Promise<Result<T, EpiphyteError>>>,
    name: &'static str,
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.promise.set(Err(EpiphyteError::internal(self.name)));
        }
    }
}
