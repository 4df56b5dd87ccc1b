//! Metadata values and the cursor that reads them. No length is trusted before it is compared with
//! what is left.

use std::fmt;

/// Why a piece of the file can't be read; the caller adds the file, key or tensor it was reading.
pub(super) type Parsed<T> = Result<T, String>;

/// Arrays within arrays, at most.
const MAX_DEPTH: usize = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A metadata value, borrowed from the file. Integers and floats are widened: writers disagree on
/// their width.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

/// An array of values of one type, read on demand.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (mut cursor, kind) = (Cursor::new(self.bytes, 0), self.kind);
        (0..self.len).map_while(move |_| cursor.value(kind).ok())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} x {}]", self.len, kind_name(self.kind))
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(v) => v.fmt(f),
            Self::Signed(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Bool(v) => v.fmt(f),
            Self::String(v) => v.fmt(f),
            Self::Array(v) => fmt::Debug::fmt(v, f),
        }
    }
}

/// What a metadata value can be read as: `u32`, `f32`, `bool`, `i32`, `u64`, `&str`, [`Value`], and
/// `Vec`s of them.
pub trait FromValue<'a>: Sized {
    /// For the error: "expected ...".
    fn expected() -> String;
    /// `None` when the value is of another type or out of range.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! from_value {
    ($($to:ty, $expected:literal: $($value:pat => $result:expr),+;)+) => {$(
        impl<'a> FromValue<'a> for $to {
            fn expected() -> String {
                $expected.into()
            }
            fn from_value(value: Value<'a>) -> Option<Self> {
                match value {
                    $($value => $result,)+
                    #[allow(unreachable_patterns, reason = "`Value` itself takes everything")]
                    _ => None,
                }
            }
        }
    )+};
}

from_value! {
    u32, "an unsigned 32-bit integer": Value::Unsigned(v) => v.try_into().ok(), Value::Signed(v) => v.try_into().ok();
    i32, "a 32-bit integer": Value::Unsigned(v) => v.try_into().ok(), Value::Signed(v) => v.try_into().ok();
    u64, "an unsigned integer": Value::Unsigned(v) => Some(v), Value::Signed(v) => v.try_into().ok();
    f32, "a number": Value::Float(v) => Some(v as f32);
    bool, "true or false": Value::Bool(v) => Some(v);
    &'a str, "text": Value::String(v) => Some(v);
    Value<'a>, "a value": v => Some(v);
    Array<'a>, "an array": Value::Array(v) => Some(v);
}

impl<'a, T: FromValue<'a>> FromValue<'a> for Vec<T> {
    fn expected() -> String {
        format!("an array, each element {}", T::expected())
    }

    fn from_value(value: Value<'a>) -> Option<Self> {
        let Value::Array(array) = value else { return None };
        let all: Self = array.iter().map_while(T::from_value).collect();
        (all.len() == array.len).then_some(all)
    }
}

/// Reads little-endian fields from a position on.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> Cursor<'a> {
    /// Past the end reads as the end.
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { rest: bytes.get(position..).unwrap_or_default(), total: bytes.len() }
    }

    pub(super) fn position(&self) -> usize {
        self.total - self.rest.len()
    }

    pub(super) fn remaining(&self) -> u64 {
        self.rest.len() as u64
    }

    fn truncated(&self, wanted: u64) -> String {
        let (at, left) = (self.position(), self.rest.len());
        format!(
            "{wanted} bytes are needed at byte {at} and {left} are left; the file is cut short or \
            damaged"
        )
    }

    fn take(&mut self, n: u64) -> Parsed<&'a [u8]> {
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) = split.ok_or_else(|| self.truncated(n))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let (taken, rest) =
            self.rest.split_first_chunk().ok_or_else(|| self.truncated(N as u64))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self) -> Parsed<&'a str> {
        let (at, len) = (self.position(), self.u64()?);
        str::from_utf8(self.take(len)?)
            .map_err(|_| format!("the text at byte {at} is not UTF-8; convert the file again"))
    }

    /// A value of type `kind` (`gguf_metadata_value_type`).
    pub(super) fn value(&mut self, kind: u32) -> Parsed<Value<'a>> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("{other} is neither true (1) nor false (0)")),
            },
            STRING => Value::String(self.string()?),
            ARRAY => Value::Array(self.elements(MAX_DEPTH)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("value type {kind} is unknown")),
        })
    }

    /// Steps over a value of type `kind`, checking lengths only.
    pub(super) fn skip(&mut self, kind: u32) -> Parsed<()> {
        self.skip_nested(kind, MAX_DEPTH)
    }

    fn skip_nested(&mut self, kind: u32, depth: usize) -> Parsed<()> {
        let size = min_bytes(kind).ok_or_else(|| format!("value type {kind} is unknown"))?;
        match (kind, depth.checked_sub(1)) {
            (STRING, _) => {
                let len = self.u64()?;
                self.take(len).map(drop)
            }
            (ARRAY, None) => Err(format!("arrays are nested more than {MAX_DEPTH} deep")),
            (ARRAY, Some(depth)) => {
                let (kind, n) = (self.u32()?, self.u64()?);
                // Each element takes bytes, so a lie about their number ends at the end of the
                // file.
                (0..n).try_for_each(|_| self.skip_nested(kind, depth))
            }
            _ => self.take(size).map(drop),
        }
    }

    /// Steps over an array, checking every length and text in it.
    fn elements(&mut self, depth: usize) -> Parsed<Array<'a>> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| format!("arrays are nested more than {MAX_DEPTH} deep"))?;
        let (kind, n) = (self.u32()?, self.u64()?);
        let size = min_bytes(kind).ok_or_else(|| format!("value type {kind} is unknown"))?;
        let bytes = n.checked_mul(size).filter(|&bytes| bytes <= self.remaining());
        let bytes = bytes.ok_or_else(|| {
            format!("an array of {n} elements is longer than the rest of the file")
        })?;
        let start = self.rest;
        match kind {
            STRING => (0..n).try_for_each(|_| self.string().map(drop))?,
            ARRAY => (0..n).try_for_each(|_| self.elements(depth).map(drop))?,
            _ => drop(self.take(bytes)?),
        }
        Ok(Array { kind, len: n as usize, bytes: &start[..start.len() - self.rest.len()] })
    }
}

/// The least bytes a value takes.
fn min_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        STRING | 10..=12 => 8,
        ARRAY => 12,
        _ => return None,
    })
}

fn kind_name(kind: u32) -> &'static str {
    const NAMES: [&str; 13] = [
        "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64",
        "f64",
    ];
    NAMES.get(kind as usize).copied().unwrap_or("?")
}
