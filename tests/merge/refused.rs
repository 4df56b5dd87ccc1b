//! What can't be merged, by name.

use epiphyte::Error;
use epiphyte::adapter::Adapter;
use epiphyte::merge::{Manifest, Method, Parent, Rank, Recipe, merge};
use serde_json::{Value, json};

use super::{SHAPE, method, parents, random_adapter};

fn two() -> Vec<Adapter> {
    vec![random_adapter([3, 3, 2, 3], 1), random_adapter([3, 3, 2, 3], 2)]
}

/// The argument or thing that is refused, and why.
fn refusal(parents: &[Parent<'_>], recipe: Recipe) -> (String, String) {
    match merge(parents, &recipe, &SHAPE, &mut |_, _| {}) {
        Err(Error::InvalidArgument { name, reason }) => (name.into(), reason),
        Err(Error::InvalidAdapter { what, reason }) => (what, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn recipes_that_mean_nothing() {
    let adapters = two();
    let cases: [(&str, Value, [f64; 2], &str); 16] = [
        ("ties", json!({"density": 0.0}), [1.0, 1.0], "density"),
        ("ties", json!({"density": 1.5}), [1.0, 1.0], "density"),
        ("dare_linear", json!({"density": -0.5}), [1.0, 1.0], "density"),
        ("magnitude_prune", json!({"density": 0}), [1.0, 1.0], "density"),
        ("linear", json!({"semantics": "mergekit"}), [1.0, -1.0], "weights"),
        ("linear", json!({"normalize": true}), [0.0, 0.0], "weights"),
        ("task_arithmetic", json!({"normalize": true}), [0.5, -0.5], "weights"),
        ("dare_linear", json!({"normalize": true}), [2.0, -2.0], "weights"),
        ("slerp", json!({}), [1.0, -1.0], "weights"),
        ("soup", json!({}), [1.0, 0.5], "weights"),
        ("cat", json!({}), [f64::NAN, 1.0], "weights"),
        ("slerp", json!({"t": 1.5}), [1.0, 1.0], "t"),
        ("slerp", json!({"t": 0.5}), [1.0, 0.5], "t"),
        ("ties", json!({"on": "factors", "semantics": "mergekit"}), [1.0, 1.0], "on"),
        ("linear", json!({"on": "factors", "normalize": true}), [1.0, 1.0], "on"),
        ("ties", json!({"normalize": false}), [1.0, 1.0], "normalize"),
    ];
    for (name, options, weights, expected) in cases {
        let recipe = Recipe::from(method(name, options.clone()));
        let (found, reason) = refusal(&parents(&adapters, &weights), recipe);
        assert_eq!(found, expected, "{name} {options}: {reason}");
    }
    let cat = method("cat", json!({}));
    for (rank, expected) in [
        (Rank::Fixed(0), "rank"),
        (Rank::Energy(0.0), "energy"),
        (Rank::Energy(1.1), "energy"),
        (Rank::Energy(f64::NAN), "energy"),
    ] {
        let recipe = Recipe { method: cat, rank: Some(rank) };
        assert_eq!(refusal(&parents(&adapters, &[1.0, 1.0]), recipe).0, expected);
    }
    let mut dense = parents(&adapters, &[1.0, 1.0]);
    dense[0].density = Some(0.5);
    assert_eq!(refusal(&dense, cat.into()).0, "density");
    assert_eq!(refusal(&[], cat.into()).0, "parents");
    assert_eq!(refusal(&dense[..1], method("slerp", json!({})).into()).0, "density");
    dense[0].density = None;
    assert_eq!(refusal(&dense[..1], method("slerp", json!({})).into()).0, "parents");
}

#[test]
fn options_and_methods_that_are_not_there() {
    for (name, options, part) in [
        ("tie", json!({}), "tie"),
        ("cat", json!({"density": 0.5}), "density"),
        ("ties", json!({"densty": 0.5}), "densty"),
        ("ties", json!({"density": "half"}), "f64"),
        ("ties", json!({"elect": "loudest"}), "loudest"),
        ("soup", json!({"t": 1}), "t"),
    ] {
        match Method::from_options(name, options.as_object().unwrap()) {
            Err(Error::InvalidArgument { name: "method", reason }) => {
                assert!(reason.contains(part) && !reason.contains('\n'), "{reason}");
            }
            other => panic!("{name} {options}: {other:?}"),
        }
    }
    for name in Method::NAMES {
        assert_eq!(method(name, json!({})).name(), name);
    }
}

#[test]
fn parents_that_do_not_go_together() {
    let mut adapters = two();
    let cat: Recipe = method("cat", json!({})).into();
    adapters[1].base_fingerprint = Some("other".into());
    let (what, reason) = refusal(&parents(&adapters, &[1.0, 1.0]), cat);
    assert_eq!(what, "b");
    assert!(reason.contains("another base than `a`"), "{reason}");
    adapters[1].base_fingerprint = None;
    let silent = merge(&parents(&adapters, &[1.0, 1.0]), &cat, &SHAPE, &mut |_, _| {}).unwrap();
    assert_eq!(silent.adapter.base_fingerprint.as_deref(), Some("base"));
    assert!(silent.report.warnings[0].ends_with(": b"), "{:?}", silent.report.warnings);

    adapters[1].modules[1].a.pop();
    let path = adapters[1].modules[1].path.to_string();
    assert_eq!(refusal(&parents(&adapters, &[1.0, 1.0]), cat).0, path);
    adapters[1].modules[1].a.push(f32::NAN);
    let (what, reason) = refusal(&parents(&adapters, &[1.0, 1.0]), cat);
    assert_eq!(what, path);
    assert!(reason.contains("NaN"), "{reason}");
}

#[test]
fn factors_of_unequal_ranks_and_numbers_that_are_too_large() {
    let adapters = [random_adapter([3, 3, 2, 3], 1), random_adapter([3, 4, 2, 3], 2)];
    for name in ["linear", "ties", "slerp", "dare_ties"] {
        let recipe = method(name, json!({"on": "factors"})).into();
        let (what, reason) = refusal(&parents(&adapters, &[1.0, 1.0]), recipe);
        assert_eq!(what, "model.layers.0.self_attn.q_proj", "{name}");
        assert!(reason.contains("[3, 4]"), "{reason}");
    }
    for name in ["cat", "svd", "ties"] {
        let recipe = method(name, json!({})).into();
        let (_, reason) = refusal(&parents(&adapters, &[1e300, 1e300]), recipe);
        assert!(reason.contains("too large for f32"), "{name}: {reason}");
    }
}

#[test]
fn manifests_of_another_version() {
    for text in
        ["", "{}", "[1]", r#"{"format":"epiphyte.merge.2","recipe":{"method":"cat"},"parents":[]}"#]
    {
        assert!(matches!(Manifest::parse(text), Err(Error::InvalidAdapter { .. })), "{text}");
    }
    let text = r#"{"format":"epiphyte.merge.1","recipe":{"method":"cat"},"parents":[]}"#;
    assert_eq!(Manifest::parse(text).unwrap().recipe.method.name(), "cat");
}
