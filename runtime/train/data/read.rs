//! Files into datasets, as a stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::encode::Windows;
use super::record::{Record, Row};
use super::{Dataset, Encoder, Origin};
use crate::error::{Error, Result};

/// Bytes of a line; a longer one is no example.
const MAX_LINE_BYTES: usize = 16 << 20;
const BYTE_ORDER_MARK: char = '\u{feff}';
/// Bytes of a text that are encoded at a time.
const PIECE_BYTES: usize = 1 << 20;
/// In place of a path in errors.
pub(crate) const MEMORY: &str = "<memory>";

impl Dataset {
    /// Reads a JSONL file, or for the path `-` standard input: one [`Record`] a line, blank lines
    /// ignored. A `weight` of 0 or more in a record is what its loss counts.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] naming the line, or when nothing is left to
    /// train on.
    pub fn read_jsonl(path: impl AsRef<Path>, encoder: &Encoder<'_>) -> Result<Self> {
        Self::read_jsonl_with(path, encoder, |_, _| {})
    }

    /// As [`Dataset::read_jsonl`]; `each` gets every record that gave an example or more, after the
    /// number of its line, from 1.
    ///
    /// Errors: as [`Dataset::read_jsonl`].
    pub fn read_jsonl_with(
        path: impl AsRef<Path>,
        encoder: &Encoder<'_>,
        each: impl FnMut(usize, Record),
    ) -> Result<Self> {
        let source = Source::open(path.as_ref())?;
        Self::read_jsonl_from(source.reader, source.name, encoder, each)
    }

    /// As [`Dataset::read_jsonl_with`] from any reader, called `name` in errors.
    ///
    /// Errors: as [`Dataset::read_jsonl`].
    pub fn read_jsonl_from(
        reader: impl BufRead,
        name: &Path,
        encoder: &Encoder<'_>,
        mut each: impl FnMut(usize, Record),
    ) -> Result<Self> {
        let mut lines = Lines { reader, buffer: Vec::new(), number: 0 };
        let mut data = Self::default();
        while let Some(line) = lines.next().map_err(|e| Error::io(name, e))? {
            let row = match line {
                Ok("") => continue,
                Ok(line) => Row::parse(line),
                Err(reason) => Err(reason),
            };
            let examples = data.examples.len();
            let pushed = row.and_then(|Row { record, weight }| {
                data.push_weighted(&record, weight, encoder).map_err(|error| error.to_string())?;
                Ok(record)
            });
            let reason = match pushed {
                Ok(record) => {
                    if data.examples.len() > examples {
                        each(lines.number, record);
                    }
                    continue;
                }
                Err(reason) => format!("line {}: {reason}", lines.number),
            };
            data.pass_over(reason, name, encoder)?;
        }
        Ok(data.not_empty(name)?.weighed(encoder.options()))
    }

    /// As [`Dataset::read_jsonl`], of records in memory; errors number them from 1.
    ///
    /// Errors: as [`Dataset::read_jsonl`], with `<memory>` for the path.
    pub fn of_records(records: &[Record], encoder: &Encoder<'_>) -> Result<Self> {
        let name = Path::new(MEMORY);
        let mut data = Self::default();
        for (number, record) in (1..).zip(records) {
            if let Err(error) = data.push(record, encoder) {
                data.pass_over(format!("example {number}: {error}"), name, encoder)?;
            }
        }
        Ok(data.not_empty(name)?.weighed(encoder.options()))
    }

    /// Counts what can't be used.
    ///
    /// Errors: [`Error::InvalidFile`] with `reason`, unless it may be passed over.
    fn pass_over(&mut self, reason: String, name: &Path, encoder: &Encoder<'_>) -> Result<()> {
        if !encoder.options().skip_bad {
            return Err(invalid(name, reason));
        }
        self.report.skipped += 1;
        self.report.first_skipped.get_or_insert(reason);
        Ok(())
    }

    /// Reads a UTF-8 text file, or for the path `-` standard input, as one document, for continued
    /// pre-training: loss on every token, cut into examples of `seq_len` tokens of which each
    /// begins with the last of the one before. It is encoded in pieces of at most 1 MiB that end
    /// where a line does.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] when it is not UTF-8 or has no two tokens.
    pub fn read_text(path: impl AsRef<Path>, encoder: &Encoder<'_>) -> Result<Self> {
        let source = Source::open(path.as_ref())?;
        Self::read_text_from(source.reader, source.name, encoder)
    }

    /// As [`Dataset::read_text`] from any reader, called `name` in errors.
    ///
    /// Errors: as [`Dataset::read_text`].
    pub fn read_text_from(
        mut reader: impl BufRead,
        name: &Path,
        encoder: &Encoder<'_>,
    ) -> Result<Self> {
        let mut windows = Windows::new(encoder.options().seq_len);
        let mut data = Self::default();
        let (mut buffer, mut done) = (Vec::new(), 0);
        loop {
            let wanted = (PIECE_BYTES - buffer.len()) as u64;
            let read = (&mut reader)
                .take(wanted)
                .read_to_end(&mut buffer)
                .map_err(|e| Error::io(name, e))?;
            let last = read as u64 != wanted;
            if last && done == 0 && buffer.is_empty() {
                break;
            }
            let piece = piece(&buffer, last).map_err(|at| invalid(name, not_utf8(done + at)))?;
            let ids = match done {
                0 => encoder.start(piece.strip_prefix(BYTE_ORDER_MARK).unwrap_or(piece))?,
                _ => encoder.text(piece)?,
            };
            data.add_windows(windows.push(&ids));
            let taken = piece.len();
            done += taken;
            buffer.drain(..taken);
            if last {
                data.add_windows(windows.push(encoder.eos()));
                break;
            }
        }
        data.add_windows(windows.finish());
        data.not_empty(name)
    }

    fn add_windows(&mut self, examples: impl IntoIterator<Item = super::Example>) {
        for example in examples {
            self.add(example, Origin { record: self.report.records, answer: 1 });
            self.report.records += 1;
        }
    }

    fn not_empty(self, path: &Path) -> Result<Self> {
        let report = &self.report;
        let reason = match (&report.first_skipped, report.dropped) {
            _ if !self.is_empty() => return Ok(self),
            (Some(first), _) => {
                format!("all of its {} lines were skipped; {first}", report.skipped)
            }
            (None, 0) => {
                "it holds no examples; give one JSON object a line, or a text with its own option"
                    .into()
            }
            (None, dropped) => format!(
                "of its {dropped} examples none has an answer left after cutting; raise `seq_len` \
                or shorten the prompts"
            ),
        };
        Err(invalid(path, reason))
    }
}

/// What is read, and what errors call it.
struct Source<'a> {
    reader: Box<dyn BufRead>,
    name: &'a Path,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self {
                reader: Box::new(io::stdin().lock()),
                name: Path::new("standard input"),
            });
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().map_err(|e| Error::io(path, e))?.is_dir() {
            return Err(invalid(path, "a folder; give a file".into()));
        }
        Ok(Self { reader: Box::new(BufReader::new(file)), name: path })
    }
}

fn invalid(path: &Path, reason: String) -> Error {
    Error::InvalidFile { path: path.into(), reason }
}

fn not_utf8(at: usize) -> String {
    format!("not UTF-8 from byte {at} on; convert it")
}

/// The part of `buffer` to encode now: all of the last one, else up to the end of a line or,
/// failing that, of a character. The error is where it stops being UTF-8.
fn piece(buffer: &[u8], last: bool) -> Result<&str, usize> {
    let line = buffer.iter().rposition(|&byte| byte == b'\n').map(|at| at + 1);
    let end = if last { buffer.len() } else { line.unwrap_or(buffer.len()) };
    match std::str::from_utf8(&buffer[..end]) {
        Ok(text) => Ok(text),
        // A character that goes on in the next piece.
        Err(e) if !last && line.is_none() && e.error_len().is_none() && e.valid_up_to() > 0 => {
            std::str::from_utf8(&buffer[..e.valid_up_to()]).map_err(|e| e.valid_up_to())
        }
        Err(e) => Err(e.valid_up_to()),
    }
}

/// Lines of a file, trimmed, in one buffer.
struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Of the line read last, from 1.
    number: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line, or what is wrong with it; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Result<&str, String>>> {
        self.buffer.clear();
        self.number += 1;
        if (&mut self.reader).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut self.buffer)? == 0
        {
            return Ok(None);
        }
        if self.buffer.len() == MAX_LINE_BYTES && !self.buffer.ends_with(b"\n") {
            self.reader.skip_until(b'\n')?;
            return Ok(Some(Err(format!("longer than {MAX_LINE_BYTES} bytes"))));
        }
        let first = self.number == 1;
        let text = std::str::from_utf8(&self.buffer).map(|text| {
            match text.strip_prefix(BYTE_ORDER_MARK) {
                Some(rest) if first => rest.trim(),
                _ => text.trim(),
            }
        });
        Ok(Some(
            text.map_err(|e| format!("not UTF-8 from byte {} of the line on", e.valid_up_to())),
        ))
    }
}
