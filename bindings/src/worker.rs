//! Work off the caller's thread: a thread for each call that may wait, and futures that only wait
//! for it. They need no runtime of their own.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;

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
        let (slot, wakers) = &mut *lock(&self.0);
        slot.get_or_insert(value);
        wakers.drain(..).for_each(Waker::wake);
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

/// Starts a thread.
///
/// Errors: [`EpiphyteError::Internal`] when the system has none.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), EpiphyteError> {
    let started = thread::Builder::new().name(format!("epiphyte {name}")).spawn(work);
    started.map(drop).map_err(|_| EpiphyteError::internal("the system has no thread left"))
}

/// Runs `work` on a thread of its own; nothing waits but the future. Dropping that leaves the work
/// running.
///
/// Errors: those of `work`; [`EpiphyteError::Internal`] naming the call when it panics.
pub(crate) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, EpiphyteError> + Send + 'static,
) -> Result<T, EpiphyteError> {
    let promise = Arc::new(Promise::default());
    let kept = Kept { promise: Arc::clone(&promise), name };
    spawn(name, move || kept.promise.set(work()))?;
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
