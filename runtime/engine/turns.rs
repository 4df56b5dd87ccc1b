//! A lock that is fair: whoever asks first has its turn first. The standard library's may give it
//! to the same thread again and again.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A value that one caller at a time has, in the order in which they asked.
#[derive(Debug, Default)]
pub(super) struct Turns<T> {
    tickets: Mutex<Tickets>,
    served: Condvar,
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Tickets {
    /// The next one to be drawn.
    next: u64,
    /// The one whose turn it is.
    serving: u64,
}

/// The value, until it is dropped.
pub(super) struct Turn<'a, T> {
    // Before the other field: the value is free when the next one is called.
    value: MutexGuard<'a, T>,
    _served: Served<'a, T>,
}

struct Served<'a, T>(&'a Turns<T>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Turns<T> {
    pub(super) fn new(value: T) -> Self {
        Self { tickets: Mutex::default(), served: Condvar::new(), value: Mutex::new(value) }
    }

    /// Waits for a turn.
    pub(super) fn take(&self) -> Turn<'_, T> {
        self.take_after(|| ()).0
    }

    /// A turn, if nobody has one or waits for it.
    pub(super) fn try_take(&self) -> Option<Turn<'_, T>> {
        let mut tickets = lock(&self.tickets);
        if tickets.next > tickets.serving {
            return None;
        }
        tickets.next += 1;
        drop(tickets);
        Some(Turn { value: lock(&self.value), _served: Served(self) })
    }

    /// As [`Turns::take`]; `drawn` is called at the moment that decides who is before whom.
    pub(super) fn take_after<R>(&self, drawn: impl FnOnce() -> R) -> (Turn<'_, T>, R) {
        let mut tickets = lock(&self.tickets);
        let (mine, drawn) = (tickets.next, drawn());
        tickets.next += 1;
        let others = |tickets: &mut Tickets| tickets.serving != mine;
        drop(self.served.wait_while(tickets, others).unwrap_or_else(PoisonError::into_inner));
        (Turn { value: lock(&self.value), _served: Served(self) }, drawn)
    }
}

impl<T> Drop for Served<'_, T> {
    fn drop(&mut self) {
        lock(&self.0.tickets).serving += 1;
        self.0.served.notify_all();
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::sync::mpsc;

    use super::{Turns, lock};

    #[test]
    fn turns_come_in_the_order_in_which_they_are_asked_for() {
        let turns = Turns::new(Vec::new());
        let (asked, heard) = mpsc::channel();
        std::thread::scope(|scope| {
            let mut mine = turns.take();
            for i in 1..=8 {
                let (turns, asked) = (&turns, asked.clone());
                scope.spawn(move || {
                    let (mut turn, ()) = turns.take_after(|| asked.send(i).unwrap());
                    turn.push(i);
                });
                assert_eq!(heard.recv(), Ok(i));
                assert!(turns.try_take().is_none());
            }
            mine.push(0);
            drop(mine);
            // One that has had its turn asks again: it is the last.
            turns.take().push(9);
        });
        assert!(turns.try_take().is_some());
        assert_eq!(*lock(&turns.value), (0..=9).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_in_a_turn_ends_it() {
        let turns = Turns::new(1);
        let panicked = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let _turn = turns.take();
                    panic!("on purpose");
                })
                .join()
        });
        assert!(panicked.is_err());
        assert_eq!(*turns.take(), 1);
    }
}
