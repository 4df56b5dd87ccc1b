//! Python's regular expressions on module paths.
//!
//! Most run on an engine whose time is linear in pattern and path. Look-around and back-references
//! need one that tries alternatives; it does so a bounded number of times.

use regex::bytes::{Regex, RegexBuilder};

use crate::error::{Error, Result};

/// Bytes of a compiled pattern.
const MAX_COMPILED: usize = 1 << 20;
/// Brackets of a pattern with look-around: its parser calls itself for each.
const MAX_BRACKETS: usize = 128;
/// Alternatives tried on one path.
const MAX_TRIES: usize = 20_000;

/// A pattern for paths, which are ASCII.
pub(super) struct Pattern {
    /// The config's, for errors.
    key: String,
    engine: Engine,
}

enum Engine {
    Linear(Regex),
    LookAround(fancy_regex::Regex),
}

impl Pattern {
    /// Compiles the pattern of a config's key.
    ///
    /// Errors: [`Error::InvalidAdapter`] naming the key when it is not understood or too large.
    pub(super) fn new(key: &str, pattern: &str) -> Result<Self> {
        // Paths are ASCII, so bytes do; Python's `\d` and `\w` agree on them.
        let pattern = &end_as_python(pattern);
        let mut linear = RegexBuilder::new(pattern);
        linear.unicode(false).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED);
        let engine = match linear.build() {
            Ok(regex) => Engine::Linear(regex),
            Err(regex::Error::CompiledTooBig(_)) => return Err(too_large(key)),
            Err(_) => Engine::LookAround(look_around(key, pattern)?),
        };
        Ok(Self { key: key.into(), engine })
    }

    /// Whether it is found in `path`.
    ///
    /// Errors: [`Error::InvalidAdapter`] when it takes too long.
    pub(super) fn is_match(&self, path: &str) -> Result<bool> {
        match &self.engine {
            Engine::Linear(regex) => Ok(regex.is_match(path.as_bytes())),
            Engine::LookAround(regex) => regex.is_match(path).map_err(|_| self.too_slow()),
        }
    }

    /// What the group `name` is where the pattern is found in `path`.
    ///
    /// Errors: as [`Self::is_match`].
    pub(super) fn group<'p>(&self, path: &'p str, name: &str) -> Result<Option<&'p str>> {
        let range = match &self.engine {
            Engine::Linear(regex) => {
                regex.captures(path.as_bytes()).and_then(|found| Some(found.name(name)?.range()))
            }
            Engine::LookAround(regex) => {
                let found = regex.captures(path).map_err(|_| self.too_slow())?;
                found.and_then(|found| Some(found.name(name)?.range()))
            }
        };
        Ok(range.and_then(|range| path.get(range)))
    }

    fn too_slow(&self) -> Error {
        let reason = format!(
            "the pattern tries more than {MAX_TRIES} ways to match a path; list the modules instead"
        );
        Error::InvalidAdapter { what: self.key.clone(), reason }
    }
}

/// Python's `\Z`, the end and nothing after it, is `\z` to both engines.
fn end_as_python(pattern: &str) -> String {
    let mut escaped = false;
    let one = |c: char| {
        let end = escaped && c == 'Z';
        escaped = c == '\\' && !escaped;
        if end { 'z' } else { c }
    };
    pattern.chars().map(one).collect()
}

fn look_around(key: &str, pattern: &str) -> Result<fancy_regex::Regex> {
    if pattern.bytes().filter(|&c| c == b'(' || c == b'[').count() > MAX_BRACKETS {
        return Err(too_large(key));
    }
    let built = fancy_regex::RegexBuilder::new(pattern)
        .backtrack_limit(MAX_TRIES)
        .delegate_size_limit(MAX_COMPILED)
        .delegate_dfa_size_limit(MAX_COMPILED)
        .build();
    built.map_err(|_| {
        let reason = "the pattern is not understood; list the modules instead";
        Error::InvalidAdapter { what: key.into(), reason: reason.into() }
    })
}

fn too_large(key: &str) -> Error {
    let reason = "the pattern is too large; list the modules instead".into();
    Error::InvalidAdapter { what: key.into(), reason }
}
