//! Recipes in mergekit's shape.

use epiphyte::Error;
use epiphyte::merge::{Method, Rank, RecipeFile};
use serde_json::{Value, json};

use super::method;

fn parse(value: Value) -> RecipeFile {
    RecipeFile::parse(&value).unwrap()
}

#[test]
fn a_recipe_of_mergekit_means_what_it_means_there() {
    let file = parse(json!({
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "base"},
            {"model": "a", "parameters": {"weight": 0.7, "density": 0.5}},
            {"model": "b", "parameters": {"weight": -0.3}},
        ],
        "parameters": {"normalize": true, "int8_mask": true, "lambda": 1.1, "rank": 12},
        "dtype": "float16",
    }));
    let expected =
        json!({"semantics": "mergekit", "density": 1.0, "normalize": true, "lambda": 1.1});
    assert_eq!(file.recipe.method, method("ties", expected));
    assert_eq!(file.recipe.rank, Some(Rank::Fixed(12)));
    assert!(file.half);
    let parents: Vec<_> =
        file.parents.iter().map(|p| (p.path.as_str(), p.weight, p.density)).collect();
    assert_eq!(parents, [("a", 0.7, Some(0.5)), ("b", -0.3, None)]);

    let models = json!([{"model": "a"}, {"model": "b"}]);
    let slerp = parse(json!({
        "merge_method": "slerp", "models": models, "base_model": "b", "parameters": {"t": 0.25},
    }));
    assert_eq!(slerp.recipe.method, method("slerp", json!({"t": 0.25})));
    assert_eq!(slerp.parents[0].path, "b", "the arc begins at the base");
    let plain = parse(json!({"merge_method": "linear", "models": models}));
    assert_eq!(plain.recipe.method, method("linear", json!({"semantics": "mergekit"})));
    assert!(!plain.half && matches!(plain.recipe.method, Method::Linear(_)));
}

#[test]
fn what_a_recipe_may_not_say() {
    let models = json!([{"model": "a"}, {"model": "b"}]);
    let with = |key: &str, value: Value| {
        let mut recipe = json!({"merge_method": "ties", "models": models});
        recipe[key] = value;
        recipe
    };
    let cases = [
        (json!([1]), "recipe"),
        (json!({"models": models}), "merge_method"),
        (json!({"merge_method": "ties"}), "models"),
        (with("slices", json!([])), "slices"),
        (with("tokenizer_source", json!("union")), "tokenizer_source"),
        (with("dtype", json!("bfloat16")), "dtype"),
        (with("merge_method", json!("passthrough")), "merge_method"),
        (with("merge_method", json!("slerp")), "parameters.t"),
        (with("models", json!([{"model": "a", "weight": 1}])), "weight"),
        (with("models", json!([{"model": "a", "parameters": {"gamma": 1}}])), "gamma"),
        (with("models", json!([{"model": "a", "parameters": {"weight": [0, 1]}}])), "weight"),
        (with("parameters", json!({"weight": "much"})), "weight"),
        (with("parameters", json!({"density": [0.1, 0.5]})), "density"),
        (with("parameters", json!({"rank": -1})), "parameters.rank"),
        (with("parameters", json!({"rank": 4, "energy": 0.5})), "parameters.energy"),
    ];
    for (recipe, expected) in cases {
        match RecipeFile::parse(&recipe) {
            Err(Error::InvalidMetadata { key, .. }) => assert_eq!(key, expected, "{recipe}"),
            other => panic!("{recipe}: {other:?}"),
        }
    }
    for options in [json!({"epsilon": 0.1}), json!({"t": 0.5})] {
        let refused = RecipeFile::parse(&with("parameters", options));
        assert!(matches!(refused, Err(Error::InvalidArgument { name: "method", .. })));
    }
}
