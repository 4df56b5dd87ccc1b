//! Lines of a person: edited and remembered in a terminal, plain from anything else.
//!
//! What was said is remembered while the program runs and never written to a file.

use std::io::{BufRead, IsTerminal};

use rustyline::config::{Behavior, Config};
use rustyline::error::ReadlineError;
use rustyline::history::{History as _, MemHistory};

use super::output;
use epiphyte::error::{Error, Result};

const PROMPT: &str = "> ";

/// Standard input, line by line.
#[derive(Default)]
pub(super) struct Lines {
    /// Said so far, oldest first.
    said: Vec<String>,
}

impl Lines {
    /// The next line, empty if it is not UTF-8; `None` at the end.
    ///
    /// Errors: [`Error::Io`]; [`Error::Cancelled`] for Ctrl-C in a terminal.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        if std::io::stdin().is_terminal() { self.edited() } else { plain() }
    }

    fn edited(&mut self) -> Result<Option<String>> {
        let io = |e: ReadlineError| Error::io("the terminal", std::io::Error::other(e));
        // Beside standard output, which may be a file.
        let config = Config::builder().behavior(Behavior::PreferTerm).build();
        let mut history = MemHistory::with_config(&config);
        self.said.iter().try_for_each(|line| history.add(line).map(drop)).map_err(io)?;
        // One a line: while it lives, signals are the editor's.
        let mut editor = rustyline::Editor::<(), _>::with_history(config, history).map_err(io)?;
        match editor.readline(PROMPT) {
            Ok(line) => {
                self.said.push(line.clone());
                Ok(Some(line))
            }
            Err(ReadlineError::Eof) => Ok(None),
            Err(ReadlineError::Interrupted) => Err(Error::Cancelled),
            Err(other) => Err(io(other)),
        }
    }
}

fn plain() -> Result<Option<String>> {
    let mut line = Vec::new();
    let read = std::io::stdin()
        .lock()
        .read_until(b'\n', &mut line)
        .map_err(|e| Error::io("standard input", e))?;
    let text = String::from_utf8(line).unwrap_or_else(|_| {
        output::note("error: this line is not UTF-8; convert it");
        String::new()
    });
    Ok((read > 0).then_some(text))
}
