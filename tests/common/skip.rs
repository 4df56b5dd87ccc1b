//! What a test can't do here is said by its name: where `--nocapture` shows it, and as a line of
//! the file that `EPIPHYTE_TEST_SKIPPED` names, which `make test` prints at the end.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Lines that are said already: a test may come by more than once.
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Says that the test that calls this leaves out all of itself, or the part that `reason` begins
/// with.
#[track_caller]
pub(crate) fn skip(reason: &str) {
    // A test's thread bears its name; with one thread for all of them there is a place.
    let at = Location::caller();
    let place = format!("{}:{}", at.file(), at.line());
    let current = thread::current();
    let test = current.name().filter(|name| *name != "main").unwrap_or(&place);
    let line = format!("{test}: {reason}");
    if !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.clone()) {
        return;
    }
    eprintln!("skipped: {line}");
    if let Some(path) = std::env::var_os("EPIPHYTE_TEST_SKIPPED") {
        // One write a line: several test binaries may share the file.
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// What `variable` says, a test of which less is done by default: `usual` of `all`.
#[track_caller]
pub(crate) fn usual(variable: &str, usual: u64, all: u64) -> u64 {
    let given = std::env::var(variable).ok().and_then(|value| value.parse().ok());
    let n = given.unwrap_or(usual);
    if n < all {
        skip(&format!("in part, {n} of {all}: {variable}={all} does the whole"));
    }
    n
}

/// Whether tests are to be done whole that are cut short by default; if not, says `what` is left
/// out.
#[track_caller]
pub(crate) fn whole(what: &str) -> bool {
    let whole = std::env::var("EPIPHYTE_TEST_WHOLE").is_ok_and(|value| value == "1");
    if !whole {
        skip(&format!("{what}: EPIPHYTE_TEST_WHOLE=1 does it"));
    }
    whole
}
