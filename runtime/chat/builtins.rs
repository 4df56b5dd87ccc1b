//! The functions that Hugging Face adds to Jinja for chat templates.

use std::fmt;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};

use super::{budget, json};
use crate::calendar::civil;

/// Adds `raise_exception` and Python's `tojson`.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", json::tojson);
    environment.add_test("iterable", |value: &Value| is_iterable(value));
    environment.add_test("sequence", |value: &Value| is_iterable(value));
    environment.set_formatter(print);
    // Of no use in a prompt, and they write a value out whatever its size.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
}

/// Adds `strftime_now`, the time at `seconds` after 1970, in UTC, by a `strftime` format.
pub(super) fn add_clock(environment: &mut Environment<'static>, seconds: u64) {
    environment.add_function("strftime_now", move |format: String| {
        strftime(&format, seconds)
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "unknown strftime format"))
    });
}

/// Bytes that the fuel left would pay for at one a byte. A value may hold itself many times over,
/// so its text is bounded as it is written.
pub(super) fn bytes_left(state: &State) -> usize {
    state.fuel_levels().map_or(usize::MAX, |(_, left)| usize::try_from(left).unwrap_or(usize::MAX))
}

/// Jinja's own printing, bounded for lists and maps.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return escape_formatter(out, state, value);
    }
    let value = &budget::own(state, value.clone())?;
    let mut text = Bounded::new(bytes_left(state));
    repr(value, &mut text)?;
    out.write_str(&text.into_text()?).map_err(|_| ErrorKind::WriteFailure.into())
}

/// Python's spelling of `value`, item by item: the engine's own goes through all items even when
/// there is no room.
fn repr(value: &Value, out: &mut Bounded) -> Result<(), Error> {
    let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
    let (open, close, is_map) = match value.kind() {
        ValueKind::Map => ("{", "}", true),
        ValueKind::Seq if is_tuple => ("(", if value.len() == Some(1) { ",)" } else { ")" }, false),
        ValueKind::Seq | ValueKind::Iterable => ("[", "]", false),
        _ => return out.put(&format!("{value:?}")),
    };
    out.put(open)?;
    for (i, item) in value.try_iter()?.enumerate() {
        out.put(if i == 0 { "" } else { ", " })?;
        repr(&item, out)?;
        if is_map {
            out.put(": ")?;
            repr(&value.get_item(&item)?, out)?;
        }
    }
    out.put(close)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Refuses what does not fit.
pub(super) struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl Bounded {
    pub(super) fn new(left: usize) -> Self {
        Self { bytes: Vec::new(), left }
    }

    pub(super) fn put(&mut self, text: &str) -> Result<(), Error> {
        self.left = self.left.checked_sub(text.len()).ok_or(ErrorKind::OutOfFuel)?;
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }

    pub(super) fn into_text(self) -> Result<String, Error> {
        String::from_utf8(self.bytes).map_err(|_| ErrorKind::BadSerialization.into())
    }
}

/// Marks an error whose words are the program's own.
#[derive(Debug)]
pub(super) struct OwnWords;

impl fmt::Display for OwnWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for OwnWords {}

/// An error in the program's own words, which may be shown.
pub(super) fn refused(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason).with_source(OwnWords)
}

/// What Python iterates over; undefined values are empty there.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `strftime` for the directives a date in a prompt needs; `None` for another one.
fn strftime(format: &str, seconds: u64) -> Option<String> {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let month_name = *MONTHS.get(usize::try_from(month - 1).ok()?)?;
    let day_name = *DAYS.get(usize::try_from(days % 7).ok()?)?;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'Y' => out += &year.to_string(),
            'y' => out += &format!("{:02}", year % 100),
            'm' => out += &format!("{month:02}"),
            'd' => out += &format!("{day:02}"),
            'B' => out += month_name,
            'b' => out += month_name.get(..3)?,
            'A' => out += day_name,
            'a' => out += day_name.get(..3)?,
            'H' => out += &format!("{:02}", second / 3600),
            'M' => out += &format!("{:02}", second / 60 % 60),
            'S' => out += &format!("{:02}", second % 60),
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @N '+...'`.
        let format = "%A %a %d %B %b %m %Y %y %H:%M:%S %%";
        let expected = [
            (0, "Thursday Thu 01 January Jan 01 1970 70 00:00:00 %"),
            (951_782_399, "Monday Mon 28 February Feb 02 2000 00 23:59:59 %"),
            (951_782_400, "Tuesday Tue 29 February Feb 02 2000 00 00:00:00 %"),
            (4_107_542_400, "Monday Mon 01 March Mar 03 2100 00 00:00:00 %"),
        ];
        for (seconds, text) in expected {
            assert_eq!(strftime(format, seconds).as_deref(), Some(text));
        }
        assert_eq!(strftime("%Q", 0), None);
    }
}
