//! Tokens by the shortest way, for Kotlin. uniffi's way to a token that has to be waited for crosses
//! JNA eight times, mostly with structures to be written and read, and takes longer than all that
//! the runtime does around a token. These calls take plain numbers and fill the caller's memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use epiphyte::engine::BatchToken;
use uniffi::{Handle, RustFutureContinuationCallback, RustFuturePoll};

use crate::answer::Answer;
use crate::error::number;
use crate::{BatchGeneration, Generation};

/// There is nothing yet; the task is woken when there is.
const NOT_YET: i32 = 0;
/// What there is is no token, or one that is too long: `next` says it.
const ASK_NEXT: i32 = -1;
/// Bytes before the text: the index of the sequence and the token's id.
const HEAD: usize = 8;

/// Whoever asks, on the other side of the border.
#[derive(Clone, Copy)]
struct Task {
    /// Called with `data` once there is something to ask for again.
    wake: RustFutureContinuationCallback,
    data: u64,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        (self.wake)(self.data, RustFuturePoll::Wake);
    }
}

/// Leaves the next token in `buffer`, as [`epiphyte_generation_take`].
fn take(answer: &Answer, buffer: &mut [u8], task: Task) -> i32 {
    let waker = Waker::from(Arc::new(task));
    let fits = |next: &BatchToken| HEAD + next.token.text.len() <= buffer.len();
    match answer.poll_token(&waker, fits) {
        Poll::Pending => NOT_YET,
        Poll::Ready(None) => ASK_NEXT,
        Poll::Ready(Some(BatchToken { index, token })) => {
            let end = HEAD + token.text.len();
            buffer[..4].copy_from_slice(&number(index).to_ne_bytes());
            buffer[4..HEAD].copy_from_slice(&token.id.to_ne_bytes());
            buffer[HEAD..end].copy_from_slice(token.text.as_bytes());
            number(end)
        }
    }
}

/// Calls [`take`] for the answer of a handle.
///
/// # Safety
///
/// As [`epiphyte_generation_take`], of a `T`.
unsafe fn take_of<T>(
    handle: u64,
    answer: impl FnOnce(&T) -> &Answer,
    buffer: *mut u8,
    room: i32,
    task: Task,
) -> i32 {
    let room = usize::try_from(room).unwrap_or(0);
    // SAFETY: the caller holds the handle, and has nobody else use the buffer.
    let (held, buffer) = unsafe {
        let held = Handle::from_raw_unchecked(handle).as_pointer::<T>();
        (&*held, std::slice::from_raw_parts_mut(buffer, room))
    };
    let taken = catch_unwind(AssertUnwindSafe(|| take(answer(held), buffer, task)));
    taken.unwrap_or(ASK_NEXT)
}

/// Leaves the next token in `buffer`, which has `room` bytes: the index of its sequence (0), its id,
/// 4 bytes each in the machine's order, and its text in UTF-8. Gives the bytes written; 0 if there
/// is no token yet, in which case `wake` is called with `data` when to ask again; below 0 if `next`
/// is to be asked.
///
/// # Safety
///
/// `handle` is that of a [`Generation`] which is not freed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epiphyte_generation_take(
    handle: u64,
    buffer: *mut u8,
    room: i32,
    wake: RustFutureContinuationCallback,
    data: u64,
) -> i32 {
    // SAFETY: as the caller says.
    unsafe { take_of(handle, Generation::answer, buffer, room, Task { wake, data }) }
}

/// As [`epiphyte_generation_take`], of the sequences of a batch.
///
/// # Safety
///
/// `handle` is that of a [`BatchGeneration`] which is not freed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epiphyte_batch_generation_take(
    handle: u64,
    buffer: *mut u8,
    room: i32,
    wake: RustFutureContinuationCallback,
    data: u64,
) -> i32 {
    // SAFETY: as the caller says.
    unsafe { take_of(handle, BatchGeneration::answer, buffer, room, Task { wake, data }) }
}
