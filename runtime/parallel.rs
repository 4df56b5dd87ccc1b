//! The same work on many things: on several cores, and on one by its widest vectors.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Most threads: work on memory gains little from more.
const MOST: usize = 8;

/// Runs `work`, with the widest vectors that the processor has for loops that are compiled into it.
/// The results are the same bits.
#[inline(always)]
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: the processor has AVX2.
        return unsafe { with_avx2(work) };
    }
    work()
}

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
        let running: Vec<_> = shares
            .map(|share| scope.spawn(move || share.into_iter().map(work).collect::<Vec<R>>()))
            .collect();
        running
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// As [`map`], for work of which each item takes long and some longer than others: whoever is free
/// takes the next. `progress` hears on this thread how many are done, from 0 on.
pub(crate) fn map_reporting<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    progress: &mut dyn FnMut(usize),
) -> Vec<R> {
    let threads =
        thread::available_parallelism().map_or(1, NonZero::get).min(MOST).min(items.len());
    let (next, (done, waiting)) = (AtomicUsize::new(0), mpsc::channel());
    let mut results = Vec::with_capacity(items.len());
    progress(0);
    thread::scope(|scope| {
        for done in vec![done; threads] {
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                while let Some((i, item)) = take(items, next) {
                    if done.send((i, work(item))).is_err() {
                        break;
                    }
                }
            });
        }
        for result in waiting {
            results.push(result);
            progress(results.len());
        }
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

fn take<'a, T>(items: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    items.get(i).map(|item| (i, item))
}
