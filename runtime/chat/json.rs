//! `json.dumps` of Python, which is the `tojson` of chat templates.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State, Value};

use super::builtins::{Bounded, bytes_left, refused};

/// How it writes.
struct Style {
    ensure_ascii: bool,
    /// What a level is indented by; `None` is all in one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` with transformers' order of
/// arguments and defaults.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<String, Error> {
    let mut args = args.into_values();
    let named = Kwargs::try_from(args.pop_if(|last| last.is_kwargs()).unwrap_or_default())?;
    let mut given = args.into_iter();
    let mut argument = |name| match given.next() {
        Some(value) => Ok(Some(value)),
        None => named.get::<Option<Value>>(name),
    };
    let ensure_ascii = argument("ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument("indent")?.filter(|indent| !indent.is_none());
    let separators = argument("separators")?.filter(|separators| !separators.is_none());
    let sort_keys = argument("sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let style = Style {
        ensure_ascii,
        item_separator: separator(
            separators.as_ref(),
            0,
            if indent.is_some() { "," } else { ", " },
        )?,
        key_separator: separator(separators.as_ref(), 1, ": ")?,
        indent: indent.map(indentation).transpose()?,
        sort_keys,
    };
    let mut out = Bounded::new(bytes_left(state));
    style.write(value, 0, &mut out)?;
    out.into_text()
}

/// A number of spaces, or a text.
fn indentation(indent: Value) -> Result<String, Error> {
    match (indent.as_str(), i64::try_from(indent.clone())) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Ok(width)) => Ok(" ".repeat(usize::try_from(width.max(0)).unwrap_or(0).min(64))),
        _ => Err(refused("`indent` of `tojson` is neither a number nor a text")),
    }
}

fn separator(separators: Option<&Value>, index: usize, default: &str) -> Result<String, Error> {
    let Some(separators) = separators else { return Ok(default.to_owned()) };
    let text = separators.get_item(&Value::from(index))?;
    text.as_str()
        .map(str::to_owned)
        .ok_or_else(|| refused("`separators` of `tojson` are not two texts"))
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut Bounded) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.put("null"),
            ValueKind::Bool => out.put(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.put(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect::<Vec<_>>();
                self.items(["[", "]"], &items, depth, out)
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(name(&key)?), item));
                }
                if self.sort_keys {
                    items.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.items(["{", "}"], &items, depth, out)
            }
            _ => Err(refused("`tojson` of a value that JSON has no word for")),
        }
    }

    fn items(
        &self,
        [open, close]: [&str; 2],
        items: &[(Option<String>, Value)],
        depth: usize,
        out: &mut Bounded,
    ) -> Result<(), Error> {
        out.put(open)?;
        for (i, (key, item)) in items.iter().enumerate() {
            out.put(if i == 0 { "" } else { &self.item_separator })?;
            self.line(depth + 1, out)?;
            if let Some(key) = key {
                self.text(key, out)?;
                out.put(&self.key_separator)?;
            }
            self.write(item, depth + 1, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out)?;
        }
        out.put(close)
    }

    fn line(&self, depth: usize, out: &mut Bounded) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.put("\n")?;
        (0..depth).try_for_each(|_| out.put(indent))
    }

    fn text(&self, text: &str, out: &mut Bounded) -> Result<(), Error> {
        out.put("\"")?;
        for c in text.chars() {
            match c {
                '"' => out.put("\\\"")?,
                '\\' => out.put("\\\\")?,
                '\n' => out.put("\\n")?,
                '\r' => out.put("\\r")?,
                '\t' => out.put("\\t")?,
                '\u{8}' => out.put("\\b")?,
                '\u{c}' => out.put("\\f")?,
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    let units = c
                        .encode_utf16(&mut [0; 2])
                        .iter()
                        .map(|unit| format!("\\u{unit:04x}"))
                        .collect::<String>();
                    out.put(&units)?;
                }
                c => out.put(c.encode_utf8(&mut [0; 4]))?,
            }
        }
        out.put("\"")
    }
}

/// A key as JSON spells it.
fn name(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "keys of JSON are texts")),
    }
}

/// As Python's `repr` writes numbers.
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = x.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn floats_are_those_of_python() {
        let expected = [
            (1.0, "1.0"),
            (1.5e15, "1500000000000000.0"),
            (1e16, "1e+16"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
        ];
        for (x, text) in expected {
            assert_eq!((float(x), float(-x)), (text.to_owned(), format!("-{text}")));
        }
        assert_eq!((float(0.0), float(0.1)), ("0.0".to_owned(), "0.1".to_owned()));
    }
}
