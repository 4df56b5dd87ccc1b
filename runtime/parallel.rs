//! The same work on many things, on several cores.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

/// Most threads: work on memory gains little from more.
const MOST: usize = 8;

/// `work` on each of `items`; the results in their order. Neighbours go to the same thread.
pub(crate) fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST);
    let share = items.len().div_ceil(threads);
    if threads == 1 || items.len() < 2 {
        return items.into_iter().map(work).collect();
    }
    let mut rest = items.into_iter();
    thread::scope(|scope| {
        let shares = std::iter::from_fn(|| {
            let share: Vec<T> = rest.by_ref().take(share).collect();
            (!share.is_empty()).then_some(share)
        });
        let work = &work;
        let running: Vec<_> =
            shares.map(|share| scope.spawn(move || share.into_iter().map(work).collect::<Vec<R>>())).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}
