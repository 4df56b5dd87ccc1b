//! Methods of Python's texts that the engine's own collection lacks or has in part.

use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::builtins::refused;

/// Python's white space: that of Unicode, and four control characters.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// What ends a line for `splitlines`.
const LINE_ENDS: [char; 10] =
    ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

/// Calls method `name` of `text`; `None` when it is not one of those here.
pub(super) fn call(
    state: &State,
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "ljust" | "rjust" | "center" | "zfill" => padded(state, text, name, args)?.into(),
        "partition" | "rpartition" => partition(text, name, args)?,
        "removeprefix" => text.strip_prefix(from_args::<(&str,)>(args)?.0).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(from_args::<(&str,)>(args)?.0).unwrap_or(text).into(),
        "strip" | "lstrip" | "rstrip" => stripped(text, name, args)?.into(),
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, args)?,
        "rsplit" => rsplit(text, args)?,
        "split" => match from_args::<(Option<&str>, Option<i64>)>(args)? {
            (None, max) => words(text, max),
            _ => return Ok(None),
        },
        "splitlines" => lines(text, from_args::<(Option<bool>,)>(args)?.0.unwrap_or(false)),
        "swapcase" => text.chars().flat_map(swapped).collect::<String>().into(),
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "title" => titled(text).into(),
        _ => return Ok(None),
    }))
}

fn padded(state: &State, text: &str, name: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = match (name, fill.map(|fill| fill.chars().collect::<Vec<_>>()).as_deref()) {
        ("zfill", None) => '0',
        (_, None) => ' ',
        (_, Some([fill])) => *fill,
        _ => return Err(refused("a text is filled up with one character")),
    };
    let len = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(len);
    state.consume_fuel(missing as u64)?;
    let fill = |count| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(match name {
        "ljust" => text.to_owned() + &fill(missing),
        "rjust" => fill(missing) + text,
        "zfill" => match text.strip_prefix(['+', '-']) {
            Some(digits) => text[..1].to_owned() + &fill(missing) + digits,
            None => fill(missing) + text,
        },
        _ => {
            // CPython gives the odd one to the left only for odd widths.
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            fill(left) + text + &fill(missing - left)
        }
    })
}

fn partition(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(refused("an empty separator"));
    }
    let (found, whole) = match name {
        "partition" => (text.split_once(separator), [text, "", ""]),
        _ => (text.rsplit_once(separator), ["", "", text]),
    };
    let parts = found.map_or(whole, |(before, after)| [before, separator, after]);
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

fn stripped<'t>(text: &'t str, name: &str, args: &[Value]) -> Result<&'t str, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    Ok(match name {
        "lstrip" => text.trim_start_matches(goes),
        "rstrip" => text.trim_end_matches(goes),
        _ => text.trim_matches(goes),
    })
}

/// `find` and its kin, from a character to another; places are counted in characters.
fn search(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let len = text.chars().count();
    let place = |at: Option<i64>, default: usize| match at {
        None => default,
        Some(at) if at < 0 => len.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(len)),
        Some(at) => usize::try_from(at).unwrap_or(len),
    };
    let (start, end) = (place(start, 0), place(end, len).min(len));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    let part = if start <= end { text.get(byte(start)..byte(end)) } else { None };
    if name == "count" {
        return Ok(Value::from(part.map_or(0, |part| part.matches(what).count())));
    }
    let found = part.and_then(|part| {
        let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
        at.map(|at| start + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(refused("`index` of a text that is not there")),
    }
}

/// Runs of what is no space; after `max` of them the rest is one.
fn words(text: &str, max: Option<i64>) -> Value {
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if words.len() == max { None } else { rest.find(is_space) };
        words.push(Value::from(&rest[..end.unwrap_or(rest.len())]));
        rest = end.map_or("", |end| rest[end..].trim_start_matches(is_space));
    }
    Value::from(words)
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, max): (Option<&str>, Option<i64>) = from_args(args)?;
    let Some(separator) = separator.filter(|separator| !separator.is_empty()) else {
        return Err(refused("`rsplit` without a separator"));
    };
    let max = max
        .and_then(|max| usize::try_from(max).ok())
        .map_or(usize::MAX, |max| max.saturating_add(1));
    let mut parts = text.rsplitn(max, separator).map(Value::from).collect::<Vec<_>>();
    parts.reverse();
    Ok(Value::from(parts))
}

fn lines(text: &str, keep_ends: bool) -> Value {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(LINE_ENDS).unwrap_or(rest.len());
        let end = match &rest[at..] {
            end if end.starts_with("\r\n") => at + 2,
            end => at + end.chars().next().map_or(0, char::len_utf8),
        };
        lines.push(Value::from(&rest[..if keep_ends { end } else { at }]));
        rest = &rest[end..];
    }
    Value::from(lines)
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// Each run of letters with a capital first, as `str.title` does: also after an apostrophe or a
/// digit.
fn titled(text: &str) -> String {
    let mut inside = false;
    let mut title = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            title.extend(c.to_lowercase());
        } else {
            title.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    title
}

/// `left % right`: a formatted text, or the remainder with the sign of the divisor.
pub(super) fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let zero = || Error::new(ErrorKind::InvalidOperation, "a remainder of no number");
    if let (true, true) = (left.is_integer(), right.is_integer()) {
        let (a, b) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let rest = a.checked_rem(b).ok_or_else(zero)?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if b == 0.0 {
        return Err(zero());
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}
