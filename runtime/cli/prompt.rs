//! `--prompt` and `--prompt-file`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use epiphyte::error::{Error, Result};

/// Where the prompt comes from.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct PromptArgs {
    /// The prompt; `-` reads standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the prompt from this file, less the end of its last line; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
}

impl PromptArgs {
    /// The text.
    ///
    /// Errors: [`Error::InvalidArgument`] when it is empty or not UTF-8; [`Error::Io`].
    pub(super) fn read(&self) -> Result<String> {
        let bad = |reason: &str| Error::InvalidArgument { name: "prompt", reason: reason.into() };
        let stdin = Path::new("-");
        let bytes = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) if text != "-" => text.clone().into_bytes(),
            (None, Some(path)) if path != stdin => {
                let mut bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
                // Editors put it there.
                bytes
                    .pop_if(|byte| *byte == b'\n')
                    .and_then(|_| bytes.pop_if(|byte| *byte == b'\r'));
                bytes
            }
            _ => {
                let mut bytes = Vec::new();
                std::io::stdin()
                    .read_to_end(&mut bytes)
                    .map_err(|e| Error::io("standard input", e))?;
                bytes
            }
        };
        let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8; convert it"))?;
        if text.is_empty() { Err(bad("empty; give some text")) } else { Ok(text) }
    }
}
