//! What asks a program to end: Ctrl-C, SIGTERM, and SIGHUP unless it is ignored (`nohup`). One
//! handler for all commands.
//!
//! While a [`Listener`] lives, the first such signal cancels its token, and the command ends by
//! itself with what it has. Without a listener, and at the second signal, the program leaves at
//! once. Either way the exit code is [`EXIT_CODE`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::output;
use epiphyte::engine::CancelToken;
use epiphyte::error::{Error, Result};
use epiphyte::format::remove_unfinished;

/// 128 and the number of SIGINT, as shells have it.
pub(super) const EXIT_CODE: u8 = 130;

static STATE: Mutex<State> = Mutex::new(State { listening: None, last_act: None });

struct State {
    listening: Option<Listening>,
    last_act: Option<Box<dyn FnOnce() + Send>>,
}

#[derive(Clone)]
struct Listening {
    token: CancelToken,
    note: &'static str,
}

/// A command that ends by itself when it is asked to.
pub(super) struct Listener {
    /// Cancelled by the first signal.
    pub(super) token: CancelToken,
}

impl Drop for Listener {
    fn drop(&mut self) {
        state().listening = None;
    }
}

/// Sets the handler up; once, before anything else starts.
///
/// Errors: [`Error::Io`].
pub(super) fn install() -> Result<()> {
    let ignored = hangup_is_ignored();
    ctrlc::set_handler(on_signal)
        .map_err(|e| Error::io("signal handler", std::io::Error::other(e)))?;
    if ignored {
        ignore_hangup();
    }
    Ok(())
}

/// From now on a signal cancels a token, and says `note` if that is not empty. One listener at a
/// time.
pub(super) fn listen(note: &'static str) -> Listener {
    let token = CancelToken::default();
    state().listening = Some(Listening { token: token.clone(), note });
    Listener { token }
}

/// What to do before the program leaves at once.
pub(super) fn before_leaving(act: impl FnOnce() + Send + 'static) {
    state().last_act = Some(Box::new(act));
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on_signal() {
    let listening = state().listening.clone();
    match listening.filter(|listening| !listening.token.is_cancelled()) {
        Some(Listening { token, note }) => {
            token.cancel();
            if !note.is_empty() {
                output::note(note);
            }
        }
        None => leave(),
    }
}

/// Leaves at once; half-written files go.
fn leave() -> ! {
    remove_unfinished();
    let act = state().last_act.take();
    if let Some(act) = act {
        act();
    }
    exit()
}

#[cfg(unix)]
fn exit() -> ! {
    // SAFETY: it takes a number and does not return. Unlike `exit` it runs nothing of the drivers,
    // whose threads are busy.
    unsafe { libc::_exit(i32::from(EXIT_CODE)) }
}

#[cfg(not(unix))]
fn exit() -> ! {
    std::process::exit(i32::from(EXIT_CODE))
}

/// Whether `nohup` or the like asked for that.
#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    // SAFETY: no handler is given, only what is set already is read; a null pointer is allowed for
    // what to set.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(unix)]
fn ignore_hangup() {
    // SAFETY: `SIG_IGN` runs no code.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
}

#[cfg(not(unix))]
fn hangup_is_ignored() -> bool {
    false
}

#[cfg(not(unix))]
fn ignore_hangup() {}
