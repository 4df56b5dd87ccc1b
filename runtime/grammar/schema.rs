//! A JSON schema in words that `llguidance` knows: keywords without effect are left out, and those that
//! can be said by others are. Whatever is left that it does not know, it refuses by name.

use serde_json::{Map, Number, Value, json};

/// Keywords with a schema each by name.
const BY_NAME: [&str; 5] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords with a schema or a list of them.
const SCHEMAS: [&str; 15] = [
    "items",
    "additionalItems",
    "prefixItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "not",
    "if",
    "then",
    "else",
    "allOf",
    "anyOf",
    "oneOf",
];
/// Keywords whose schemas judge the same value, and so what it is left to evaluate.
const IN_PLACE: [&str; 10] = [
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "dependentSchemas",
    "dependencies",
];
const COUNTS: [&str; 8] = [
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
];

/// Says it in known words, this schema and all within it.
pub(super) fn simplify(schema: &mut Value) {
    let is_new = schema
        .get("$schema")
        .and_then(Value::as_str)
        .is_none_or(|dialect| ["2019-09", "2020-12"].iter().any(|draft| dialect.contains(draft)));
    within(schema, is_new);
}

fn within(schema: &mut Value, is_new: bool) {
    let Some(keys) = schema.as_object_mut() else { return };
    for (name, value) in keys.iter_mut() {
        match value {
            Value::Object(schemas) if BY_NAME.contains(&name.as_str()) => {
                schemas.values_mut().for_each(|schema| within(schema, is_new));
            }
            Value::Array(schemas) if SCHEMAS.contains(&name.as_str()) => {
                schemas.iter_mut().for_each(|schema| within(schema, is_new));
            }
            value if SCHEMAS.contains(&name.as_str()) => within(value, is_new),
            value if COUNTS.contains(&name.as_str()) => whole(value),
            _ => {}
        }
    }
    // Before these drafts, a reference made what stood beside it mean nothing.
    if is_new || !keys.contains_key("$ref") {
        leave_out(keys);
        if is_new {
            nothing_unevaluated(keys);
        }
        dependencies(keys);
    }
}

/// 2.0 is 2.
fn whole(value: &mut Value) {
    let whole = value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e15).contains(n));
    if let Some(n) = whole {
        *value = Value::Number(Number::from(n as u64));
    }
}

/// Whether a schema allows anything.
fn is_anything(schema: &Value) -> bool {
    schema == &Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty)
}

/// Removes what has no effect.
fn leave_out(keys: &mut Map<String, Value>) {
    let has = |keys: &Map<String, Value>, name: &str| keys.contains_key(name);
    if !has(keys, "if") || !has(keys, "then") && !has(keys, "else") {
        keys.retain(|name, _| !["if", "then", "else"].contains(&name.as_str()));
    }
    let needs_none = keys.get("minContains").and_then(Value::as_u64) == Some(0);
    if !has(keys, "contains") || needs_none && !has(keys, "maxContains") {
        let counted = ["contains", "minContains", "maxContains"];
        keys.retain(|name, _| !counted.contains(&name.as_str()));
    }
    let idle = |name: &str, value: &Value| match name {
        "uniqueItems" => value == &Value::Bool(false),
        "propertyNames" | "unevaluatedItems" | "unevaluatedProperties" => is_anything(value),
        "not" => value == &Value::Bool(false),
        _ => false,
    };
    keys.retain(|name, value| !idle(name, value));
}

/// Where nothing else judges the value, what is left to evaluate is what no other keyword names.
fn nothing_unevaluated(keys: &mut Map<String, Value>) {
    if IN_PLACE.iter().any(|name| keys.contains_key(*name)) {
        return;
    }
    if let Some(rest) = keys.remove("unevaluatedProperties") {
        keys.entry("additionalProperties").or_insert(rest);
    }
    // A list in `items` is of the older of the two drafts.
    if keys.get("items").is_some_and(Value::is_array) || keys.contains_key("contains") {
        return;
    }
    if let Some(rest) = keys.remove("unevaluatedItems") {
        keys.entry("items").or_insert(rest);
    }
}

/// What a property asks for: the value is without it, or is as it asks.
fn dependencies(keys: &mut Map<String, Value>) {
    let names = ["dependentRequired", "dependentSchemas", "dependencies"];
    let known = |value: &Value| {
        let each = value.as_object();
        each.is_some_and(|each| each.values().all(|asked| asked.is_array() || is_schema(asked)))
    };
    let mut all = Vec::new();
    for name in names {
        if !keys.get(name).is_some_and(known) {
            continue;
        }
        let Some(Value::Object(each)) = keys.remove(name) else { continue };
        for (property, asked) in each {
            let asked = if asked.is_array() { json!({ "required": asked }) } else { asked };
            let without = json!({ "properties": { property: false } });
            all.push(json!({ "anyOf": [without, asked] }));
        }
    }
    if all.is_empty() {
        return;
    }
    // Where that is no list, it is refused as it is.
    if let Value::Array(others) = keys.entry("allOf").or_insert_with(|| json!([])) {
        others.extend(all);
    }
}

fn is_schema(value: &Value) -> bool {
    value.is_object() || value.is_boolean()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simplified(mut schema: Value) -> Value {
        simplify(&mut schema);
        schema
    }

    #[test]
    fn what_has_no_effect_is_left_out() {
        let idle = json!({
            "type": "array", "maxItems": 3.0, "uniqueItems": false, "then": { "const": 1 },
            "minContains": 2, "unevaluatedItems": true, "items": { "if": {}, "not": false },
        });
        let left = json!({ "type": "array", "maxItems": 3, "items": {} });
        assert_eq!(simplified(idle), left);
        // Not what has one, nor what is no schema.
        for kept in [
            json!({ "uniqueItems": true, "contains": { "type": "null" }, "minContains": 2 }),
            json!({ "if": {}, "then": false, "not": { "type": "string" }, "maxItems": 2.5 }),
            json!({ "const": { "then": 1, "minContains": 1, "uniqueItems": false } }),
            json!({ "properties": { "then": {}, "uniqueItems": { "enum": [{ "else": 1 }] } } }),
            json!({ "allOf": [{ "properties": { "a": {} } }], "unevaluatedProperties": false }),
        ] {
            assert_eq!(simplified(kept.clone()), kept);
        }
    }

    #[test]
    fn what_can_be_said_by_others_is() {
        let rest = json!({ "properties": { "a": {} }, "unevaluatedProperties": false });
        let said = json!({ "properties": { "a": {} }, "additionalProperties": false });
        assert_eq!(simplified(rest), said);
        let items = json!({ "prefixItems": [{}], "unevaluatedItems": { "type": "null" } });
        assert_eq!(simplified(items), json!({ "prefixItems": [{}], "items": { "type": "null" } }));
        let asks = json!({ "dependentRequired": { "a": ["b"] }, "allOf": [{}] });
        let either = json!({ "anyOf": [{ "properties": { "a": false } }, { "required": ["b"] }] });
        assert_eq!(simplified(asks), json!({ "allOf": [{}, either] }));
        let old = json!({ "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": "#/definitions/a", "dependencies": { "a": ["b"] } });
        assert_eq!(simplified(old.clone()), old, "beside a reference of old");
    }
}
