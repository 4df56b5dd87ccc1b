//! The method and its options, from the command line or a recipe file.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

use crate::adapter::Weighted;
use epiphyte::error::{Error, Result};
use epiphyte::merge::{Method, Rank, Recipe, RecipeFile};

/// Bytes of a recipe; mergekit's are far smaller.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Args)]
pub(super) struct RecipeArgs {
    /// How to merge; with `--tune` several, to find the best [default: linear]
    #[arg(long, value_name = "METHOD", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(Method::NAMES))]
    method: Vec<String>,
    /// Weights in the order of the adapters, instead of PATH=WEIGHT
    #[arg(long, value_name = "W,W,...", value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f64>,
    /// Share of the elements that stay (ties 0.2, dare 0.5, `magnitude_prune` 0.2)
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// Whose definition [default: peft]
    #[arg(long, value_parser = ["peft", "mergekit"])]
    semantics: Option<String>,
    /// What is merged: what adapters add to weights, or A and B each by itself [default: products]
    #[arg(long, value_parser = ["products", "factors"])]
    on: Option<String>,
    /// How TIES elects a sign: by the sum, or by the number [default: total]
    #[arg(long, value_parser = ["total", "frequency"])]
    elect: Option<String>,
    /// Divide by the sum of the weights, or do not
    #[arg(long, value_name = "true|false")]
    normalize: Option<bool>,
    /// Scale up what DARE leaves [default: true]
    #[arg(long, value_name = "true|false")]
    rescale: Option<bool>,
    /// Multiply the result [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// How far slerp goes from the first to the second, 0 to 1 [default: by the weights]
    #[arg(long)]
    t: Option<f64>,
    /// Seed of what DARE drops [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Rank of the result [default: the sum of the ranks; for svd the largest]
    #[arg(long, value_name = "R", conflicts_with = "energy")]
    rank: Option<usize>,
    /// As many ranks a module as hold this share of its squares, up to 1
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
    /// A recipe in the shape of mergekit's (YAML), instead of adapters and the options above
    #[arg(long, value_name = "FILE.yml", conflicts_with_all = [
        "adapters", "method", "weights", "density", "semantics", "on", "elect", "normalize",
        "rescale", "lambda", "t", "seed", "rank", "energy",
    ])]
    pub(super) config: Option<PathBuf>,
}

/// What to merge, and how.
pub(super) struct Given {
    /// At least one.
    pub(super) recipes: Vec<Recipe>,
    pub(super) parents: Vec<GivenParent>,
    pub(super) half: bool,
}

pub(super) struct GivenParent {
    pub(super) path: PathBuf,
    pub(super) weight: f64,
    pub(super) density: Option<f64>,
}

impl RecipeArgs {
    pub(super) fn read(&self, adapters: &[Weighted]) -> Result<Given> {
        match &self.config {
            Some(path) => from_file(path),
            None => {
                let (recipes, parents) = (self.recipes()?, self.parents(adapters)?);
                Ok(Given { recipes, parents, half: false })
            }
        }
    }

    fn recipes(&self) -> Result<Vec<Recipe>> {
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let options = [
            ("density", self.density.map(Value::from)),
            ("semantics", text(&self.semantics)),
            ("on", text(&self.on)),
            ("elect", text(&self.elect)),
            ("normalize", self.normalize.map(Value::from)),
            ("rescale", self.rescale.map(Value::from)),
            ("lambda", self.lambda.map(Value::from)),
            ("t", self.t.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
        ];
        let options: Map<_, _> =
            options.into_iter().filter_map(|(key, value)| Some((key.into(), value?))).collect();
        let rank = self.rank.map(Rank::Fixed).or(self.energy.map(Rank::Energy));
        let recipe =
            |name: &str| Method::from_options(name, &options).map(|method| Recipe { method, rank });
        match self.method.as_slice() {
            [] => Ok(vec![recipe("linear")?]),
            names => names.iter().map(|name| recipe(name)).collect(),
        }
    }

    fn parents(&self, adapters: &[Weighted]) -> Result<Vec<GivenParent>> {
        let invalid =
            |reason: &str| Err(Error::InvalidArgument { name: "weights", reason: reason.into() });
        if !self.weights.is_empty() && self.weights.len() != adapters.len() {
            return invalid("one for each adapter is needed");
        }
        if !self.weights.is_empty() && adapters.iter().any(|adapter| adapter.weight != 1.0) {
            return invalid("not with PATH=WEIGHT; give them in one place");
        }
        let parent = |(i, adapter): (usize, &Weighted)| GivenParent {
            path: adapter.path.clone(),
            weight: self.weights.get(i).copied().unwrap_or(f64::from(adapter.weight)),
            density: None,
        };
        Ok(adapters.iter().enumerate().map(parent).collect())
    }
}

/// A recipe's adapters are named from the folder it is in.
fn from_file(path: &Path) -> Result<Given> {
    let invalid = |reason: String| Error::InvalidFile { path: path.into(), reason };
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(invalid("no recipe: a regular file of at most 1 MiB is needed".into()));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(text).map_err(|_| invalid("not UTF-8; convert it".into()))?;
    let documents = YamlLoader::load_from_str(&text).map_err(|e| {
        let (line, column) = (e.marker().line(), e.marker().col() + 1);
        invalid(format!("not YAML (line {line}, column {column})"))
    })?;
    let [document] = documents.as_slice() else {
        return Err(invalid("one document is needed".into()));
    };
    let value = value(document).ok_or_else(|| {
        invalid("keys must be texts, numbers finite, and there are no aliases".into())
    })?;
    let RecipeFile { recipe, parents, half } = RecipeFile::parse(&value)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let parents = parents.into_iter().map(|parent| GivenParent {
        path: folder.join(parent.path),
        weight: parent.weight,
        density: parent.density,
    });
    Ok(Given { recipes: vec![recipe], parents: parents.collect(), half })
}

fn value(yaml: &Yaml) -> Option<Value> {
    Some(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => (*value).into(),
        Yaml::Integer(value) => (*value).into(),
        Yaml::Real(_) => serde_json::Number::from_f64(yaml.as_f64()?)?.into(),
        Yaml::String(text) => text.clone().into(),
        Yaml::Array(items) => Value::Array(items.iter().map(value).collect::<Option<_>>()?),
        Yaml::Hash(map) => {
            let pair = |(key, item): (&Yaml, &Yaml)| Some((key.as_str()?.into(), value(item)?));
            Value::Object(map.iter().map(pair).collect::<Option<_>>()?)
        }
        Yaml::Alias(_) | Yaml::BadValue => return None,
    })
}
