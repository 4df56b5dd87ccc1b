//! Recipes in the shape of mergekit's files: what its users have. Every key is honoured, without
//! effect, or refused by name.

use serde_json::{Map, Value};

use super::recipe::{Method, Rank, Recipe, Space};
use crate::error::{Error, Result};

/// Letters of a key or value in an error.
const MAX_SHOWN: usize = 64;

/// What a recipe file says.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeFile {
    /// How to merge.
    pub recipe: Recipe,
    /// The adapters in order, as the file names them.
    pub parents: Vec<RecipeParent>,
    /// Numbers are written as F16; the file says `dtype` or `out_dtype`.
    pub half: bool,
}

/// An adapter that a recipe file names.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeParent {
    /// Path of the adapter.
    pub path: String,
    /// How much of it.
    pub weight: f64,
    /// Share of its elements that stays; `None` for the method's.
    pub density: Option<f64>,
}

impl RecipeFile {
    /// Reads a recipe: `merge_method`, `models` with their `parameters`, `base_model`,
    /// `parameters`, `dtype`. A method that mergekit has means what it means there; `cat`, `svd`,
    /// `soup` and `magnitude_prune` are known too, and `rank` or `energy` among the parameters say
    /// the rank of the result. The base of adapters is zero, so `base_model` only leaves out the
    /// model of that name; for `slerp` it is where the arc begins.
    ///
    /// Errors: [`Error::InvalidMetadata`] naming the key; [`Error::InvalidArgument`] for an option
    /// that the method does not have.
    pub fn parse(value: &Value) -> Result<Self> {
        let top = object("recipe", value)?;
        let known =
            ["merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "name"];
        only(top, &known)?;
        let method = text("merge_method", top.get("merge_method"))?;
        let base = top.get("base_model").map(|base| text("base_model", Some(base))).transpose()?;
        let empty = Map::new();
        let parameters = match top.get("parameters") {
            None | Some(Value::Null) => &empty,
            Some(parameters) => object("parameters", parameters)?,
        };
        let mut options = parameters.clone();
        let (weight, density) = (options.remove("weight"), options.get("density").cloned());
        let weight = weight.map_or(Ok(1.0), |weight| number("weight", &weight))?;
        density.map_or(Ok(0.0), |density| number("density", &density))?;
        let rank = rank(&mut options)?;
        // How masks are stored in mergekit's memory.
        options.remove("int8_mask");
        let recipe = Recipe { method: named(method, options)?, rank };
        let mut parents = parents(top, weight)?;
        match recipe.method {
            Method::Slerp(_) => parents.sort_by_key(|parent| Some(parent.path.as_str()) != base),
            _ => parents.retain(|parent| Some(parent.path.as_str()) != base),
        }
        Ok(Self { recipe, parents, half: half(top)? })
    }
}

/// A method by mergekit's name, with its defaults.
fn named(name: &str, mut options: Map<String, Value>) -> Result<Method> {
    let ours = match name {
        // The arc by the weights.
        "nuslerp" => "slerp",
        "passthrough" => {
            let reason = "layers are stacked from model files, not from adapters";
            return Err(invalid("merge_method", reason));
        }
        other => other,
    };
    let mut default = |key: &str, value: Value| {
        options.entry(key).or_insert(value);
    };
    match ours {
        "linear" => default("semantics", "mergekit".into()),
        "ties" | "dare_linear" | "dare_ties" => {
            default("semantics", "mergekit".into());
            default("density", 1.0.into());
        }
        _ => {}
    }
    let method = Method::from_options(ours, &options)?;
    match method {
        Method::Slerp(slerp) if slerp.t.is_none() && name == "slerp" => {
            Err(invalid("parameters.t", "mergekit's slerp needs it; or take `nuslerp`"))
        }
        Method::Slerp(slerp) if slerp.on == Space::Factors => {
            Err(invalid("parameters.on", "a recipe file's slerp is on products"))
        }
        method => Ok(method),
    }
}

fn parents(top: &Map<String, Value>, weight: f64) -> Result<Vec<RecipeParent>> {
    let Some(Value::Array(models)) = top.get("models") else {
        return Err(invalid("models", "a list of adapters is needed"));
    };
    let parent = |model: &Value| {
        let model = object("models", model)?;
        only(model, &["model", "parameters"])?;
        let mut parent =
            RecipeParent { path: text("model", model.get("model"))?.into(), weight, density: None };
        if let Some(parameters) = model.get("parameters").filter(|value| !value.is_null()) {
            let parameters = object("parameters", parameters)?;
            only(parameters, &["weight", "density"])?;
            if let Some(weight) = parameters.get("weight") {
                parent.weight = number("weight", weight)?;
            }
            let density = parameters.get("density");
            parent.density = density.map(|density| number("density", density)).transpose()?;
        }
        Ok(parent)
    };
    models.iter().map(parent).collect()
}

fn rank(options: &mut Map<String, Value>) -> Result<Option<Rank>> {
    match (options.remove("rank"), options.remove("energy")) {
        (None, None) => Ok(None),
        (Some(rank), None) => match rank.as_u64() {
            Some(rank) => Ok(Some(Rank::Fixed(usize::try_from(rank).unwrap_or(usize::MAX)))),
            None => Err(invalid("parameters.rank", "a whole number is needed")),
        },
        (None, Some(energy)) => Ok(Some(Rank::Energy(number("energy", &energy)?))),
        (Some(_), Some(_)) => Err(invalid("parameters.energy", "not with `rank`; give one")),
    }
}

fn half(top: &Map<String, Value>) -> Result<bool> {
    let key = if top.contains_key("out_dtype") { "out_dtype" } else { "dtype" };
    match top.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::String(name)) if name == "float32" => Ok(false),
        Some(Value::String(name)) if name == "float16" => Ok(true),
        Some(_) => Err(invalid(key, "adapters are written as float32 or float16")),
    }
}

fn only(map: &Map<String, Value>, known: &[&str]) -> Result<()> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let shown: String = key.chars().take(MAX_SHOWN).collect();
            let known = known.join(", ");
            Err(invalid(&shown, &format!("unknown; known here: {known}")))
        }
    }
}

fn object<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| invalid(key, "keys with values are needed"))
}

fn text<'a>(key: &str, value: Option<&'a Value>) -> Result<&'a str> {
    value.and_then(Value::as_str).ok_or_else(|| invalid(key, "a name is needed"))
}

/// One number: mergekit also has lists by layer and by filter.
fn number(key: &str, value: &Value) -> Result<f64> {
    let reason = "one number is needed; lists by layer or filter are not supported";
    value.as_f64().ok_or_else(|| invalid(key, reason))
}

fn invalid(key: &str, reason: &str) -> Error {
    Error::InvalidMetadata { key: key.into(), reason: reason.into() }
}
