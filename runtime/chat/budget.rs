//! What lists and maps cost. The engine charges fuel for a list by its length, not for what its
//! items hold, and its lists may be lazy: a hundred doublings make one without end out of a few
//! bytes. Here every list and map is walked to the bottom when a template makes or uses it, at one
//! fuel a value, and what is lazy becomes a plain list. What an operator or a filter then does with
//! it is in proportion to what was paid.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::builtins::refused;
use super::methods;

// Names that no template can call by themselves.
/// Walks a list or map and pays for it.
pub(super) const OWN: &str = "#own";
/// The same for an argument that is used again for every item: it must be small.
pub(super) const SMALL: &str = "#small";
/// The same for what becomes an attribute: no namespace may be in it, or it might hold itself.
pub(super) const STORED: &str = "#stored";
/// `value[start:stop:step]`.
pub(super) const SLICE: &str = "#slice";
/// `value[key]`; the engine charges a text by its length when it is filtered, but not when a letter
/// of it is looked up.
pub(super) const ITEM: &str = "#item";

/// What a loop goes through: the engine takes none for an empty list, Python does not.
pub(super) const EACH: &str = "#each";
/// `left + right`, of which one is marked as safe.
pub(super) const ADD: &str = "#add";
/// `left % right`.
pub(super) const REM: &str = "#rem";

/// Lists in lists.
const MAX_NESTING: usize = 64;
/// Values in an argument that is used for each item.
const MAX_SMALL: u64 = 64;
/// Attributes of a namespace when it is made; a template may set as many others.
pub(super) const MAX_ATTRIBUTES: usize = 128;
/// Bytes of text that cost as much as a value.
const BYTES_PER_FUEL: usize = 64;

/// Adds the filters that [`super::rewrite`] calls.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter(OWN, |state: &State, value: Value| own(state, value));
    environment.add_filter(SMALL, small);
    environment.add_filter(STORED, stored);
    environment.add_filter(SLICE, slice);
    environment.add_filter(ITEM, |value: &Value, key: &Value| value.get_item(key));
    environment.add_filter(EACH, each);
    environment.add_filter(ADD, add_safe);
    environment.add_filter(REM, rem);
    environment.add_filter("center", |state: &State, text: &str, width: Option<i64>| {
        methods::call(state, text, "center", &[width.unwrap_or(80).into()])
    });
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_filter("sum", sum);
    environment.add_filter("format", format);
    environment.add_function("namespace", namespace);
    // Not in Jinja2, and lazy in ways of their own.
    environment.remove_filter("chain");
    environment.remove_filter("zip");
    environment.set_unknown_method_callback(method);
}

/// Python's methods.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), "format") = (value.as_str(), name) {
        if text.contains(':') && text.contains('{') {
            return Err(refused("`format()` with widths is not supported"));
        }
        pay_fields(state, text.matches('{').count(), args)?;
    }
    let called = value.as_str().map_or(Ok(None), |text| methods::call(state, text, name, args))?;
    called.map_or_else(|| unknown_method_callback(state, value, name, args), Ok)
}

fn each(value: Value) -> Result<Value, Error> {
    if value.is_none() {
        Err(refused("a loop over none, where a list is needed"))
    } else {
        Ok(value)
    }
}

/// `left + right` of texts: to a safe one the other is added escaped, as by `markupsafe`.
fn add_safe(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let (Some(a), Some(b)) = (left.as_str(), right.as_str()) else {
        return Err(refused("`safe` added to what is no text is not supported"));
    };
    if !left.is_safe() && !right.is_safe() {
        return Ok(Value::from([a, b].concat()));
    }
    state.consume_fuel(((a.len() + b.len()) / BYTES_PER_FUEL) as u64)?;
    let [a, b] = [(a, left), (b, right)]
        .map(|(text, value)| if value.is_safe() { text.to_owned() } else { escaped(text) });
    Ok(Value::from_safe_string(a + &b))
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

/// `left % right`, where a text on the left is a format.
fn rem(state: &mut State, left: &Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_none() {
        return methods::remainder(left, &right);
    }
    let args = match right.kind() {
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in right.try_iter()? {
                pairs.push((key.to_string(), right.get_item(&key)?));
            }
            vec![Value::from(Kwargs::from_iter(pairs))]
        }
        _ => match right.downcast_object_ref::<Tuple>() {
            Some(items) => items.iter().cloned().collect(),
            None => vec![right],
        },
    };
    format(state, left, Rest(args.into_iter().map(ValueOrKwargs::from).collect()))
}

fn format(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    pay_fields(state, value.as_str().map_or(0, |text| text.matches('%').count()), &args)?;
    filters::format(state, value, Rest(args.into_iter().map(ValueOrKwargs::from).collect()))
}

/// As if each field of a text printed all arguments.
fn pay_fields(state: &State, fields: usize, args: &[Value]) -> Result<(), Error> {
    let mut walk = Walk {
        pay: &mut |fuel| state.consume_fuel(fuel.saturating_mul(fields as u64)),
        namespaces: true,
    };
    args.iter().try_for_each(|arg| walk.value(arg, 0).map(drop))
}

/// A namespace of a few attributes: the engine lists them to see whether there are any.
fn namespace(start: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let namespace = functions::namespace(start)?;
    match namespace.len() {
        Some(..=MAX_ATTRIBUTES) => Ok(namespace),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "too many attributes for a namespace")),
    }
}

/// Pays for all that `value` holds; what is lazy in it becomes plain lists.
pub(super) fn own(state: &State, value: Value) -> Result<Value, Error> {
    let mut walk = Walk { pay: &mut |fuel| state.consume_fuel(fuel), namespaces: true };
    Ok(walk.value(&value, 0)?.unwrap_or(value))
}

fn small(state: &State, value: Value) -> Result<Value, Error> {
    let mut left = MAX_SMALL;
    let mut pay = |fuel| {
        left = left.checked_sub(fuel).ok_or(ErrorKind::OutOfFuel)?;
        state.consume_fuel(fuel)
    };
    Ok(Walk { pay: &mut pay, namespaces: true }.value(&value, 0)?.unwrap_or(value))
}

fn stored(state: &State, value: Value) -> Result<Value, Error> {
    let mut walk = Walk { pay: &mut |fuel| state.consume_fuel(fuel), namespaces: false };
    Ok(walk.value(&value, 0)?.unwrap_or(value))
}

/// The engine's type is private, but it has a name.
fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

struct Walk<'a> {
    pay: &'a mut dyn FnMut(u64) -> Result<(), Error>,
    /// Whether a namespace may be in the value.
    namespaces: bool,
}

impl Walk<'_> {
    /// `value` without laziness, `None` if it has none.
    fn value(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            (self.pay)(1 + (value.as_str().map_or(0, str::len) / BYTES_PER_FUEL) as u64)?;
            return Ok(None);
        }
        if depth == MAX_NESTING {
            return Err(Error::new(ErrorKind::InvalidOperation, "lists are nested too deeply"));
        }
        (self.pay)(1)?;
        if kind == ValueKind::Map { self.map(value, depth) } else { self.list(value, depth) }
    }

    fn list(&mut self, list: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let is_tuple = list.downcast_object_ref::<Tuple>().is_some();
        let mut changed = !is_tuple && list.downcast_object_ref::<Vec<Value>>().is_none();
        let mut items = Vec::new();
        for item in list.try_iter()?.checked() {
            let item = item?;
            let own = self.value(&item, depth + 1)?;
            changed |= own.is_some();
            items.push(own.unwrap_or(item));
        }
        Ok(changed
            .then(|| if is_tuple { Value::from(Tuple::from(items)) } else { Value::from(items) }))
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<Option<Value>, Error> {
        if !self.namespaces && is_namespace(map) {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "a namespace cannot hold a namespace",
            ));
        }
        for key in map.try_iter()?.checked() {
            let key = key?;
            let value = map.get_item(&key)?;
            // All that a map is made of was an operand, and so is plain.
            if self.value(&key, depth + 1)?.is_some() || self.value(&value, depth + 1)?.is_some() {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "a map cannot hold an iterator",
                ));
            }
        }
        Ok(None)
    }
}

/// As Python slices.
fn slice(
    value: Value,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Value::from(
            sliced(&text.chars().collect::<Vec<_>>(), start, stop, step)?
                .iter()
                .collect::<String>(),
        ));
    }
    let items = match value.kind() {
        ValueKind::Undefined | ValueKind::None => Vec::new(),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.collect(),
        _ => return Err(Error::new(ErrorKind::InvalidOperation, "this value cannot be sliced")),
    };
    let items = sliced(&items, start, stop, step)?;
    let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
    Ok(if is_tuple { Value::from(Tuple::from(items)) } else { Value::from(items) })
}

fn sliced<T: Clone>(
    items: &[T],
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Vec<T>, Error> {
    let len = i64::try_from(items.len()).map_err(|_| ErrorKind::OutOfFuel)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "cannot slice by a step of 0"));
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let at = |bound: Option<i64>, default| {
        bound.map_or(default, |i| (if i < 0 { i.saturating_add(len) } else { i }).clamp(low, high))
    };
    let (mut i, stop) = (at(start, first), at(stop, last));
    let mut out = Vec::new();
    while if step > 0 { i < stop } else { i > stop } {
        out.extend(usize::try_from(i).ok().and_then(|i| items.get(i)).cloned());
        i = i.saturating_add(step);
    }
    Ok(out)
}

/// The sum of numbers, from 0: that of lists or texts would copy them again for every item.
fn sum(
    state: &State,
    values: Value,
    attribute: Option<String>,
    options: Kwargs,
) -> Result<Value, Error> {
    let attribute = attribute.or(options.get::<Option<String>>("attribute")?);
    options.assert_all_used()?;
    filters::sum(
        state,
        values,
        attribute.as_deref(),
        None,
        Kwargs::from_iter(Vec::<(String, Value)>::new()),
    )
}
