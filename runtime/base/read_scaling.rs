//! Rotary scaling from Hugging Face's `config.json`.

use serde_json::{Map, Value};

use super::config::unsupported;
use super::read_json::positive;
use super::rope::{LongRope, RopeScaling, Yarn, check_original, usable};
use crate::error::{Error, Result};

const ORIGINAL: &str = "original_max_position_embeddings";

/// What a file says of it.
pub(super) struct Scaling<'a> {
    pub(super) parameters: &'a Map<String, Value>,
    /// Tokens of the context before the change, where that stands beside the parameters.
    pub(super) original: Option<f32>,
    /// Positions the model was made for.
    pub(super) most: usize,
}

impl Scaling<'_> {
    /// Errors: [`Error::Unsupported`] for another kind; [`Error::InvalidMetadata`] naming the key.
    pub(super) fn read(&self) -> Result<RopeScaling> {
        let kind = self.parameters.get("rope_type").or_else(|| self.parameters.get("type"));
        match kind.and_then(Value::as_str).unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.need("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: self.need("factor")?,
                low_freq_factor: self.need("low_freq_factor")?,
                high_freq_factor: self.need("high_freq_factor")?,
                original_max_position_embeddings: self.original()?,
            }),
            "yarn" => self.yarn(),
            "longrope" | "su" => self.long(),
            // Nothing changes within the positions that the file allows, and there are no others.
            "dynamic" => self.need("factor").map(|_| RopeScaling::None),
            kind => {
                let kind: String = kind.chars().take(64).collect();
                Err(unsupported(
                    format!("rope scaling `{kind}`"),
                    "none, linear, dynamic, yarn, longrope and llama3 scaling are",
                ))
            }
        }
    }

    fn find(&self, key: &str) -> Result<Option<f32>> {
        let value = self.parameters.get(key).filter(|value| !value.is_null());
        value.map(|value| positive(key, value)).transpose()
    }

    fn need(&self, key: &str) -> Result<f32> {
        positive(key, self.parameters.get(key).unwrap_or(&Value::Null))
    }

    /// Tokens of the context before the change; as transformers does, first by what stands beside.
    fn original(&self) -> Result<usize> {
        let tokens = self.original.map_or_else(|| self.need(ORIGINAL), Ok)?;
        check_original(tokens as usize, || ORIGINAL.into())
    }

    fn yarn(&self) -> Result<RopeScaling> {
        let other = ["mscale", "mscale_all_dim", "truncate"].into_iter().find(|key| {
            let usual = if *key == "truncate" { Value::Bool(true) } else { Value::Null };
            self.parameters.get(*key).is_some_and(|value| *value != usual)
        });
        if let Some(key) = other {
            return Err(unsupported(format!("`{key}` of yarn scaling"), "scaling without it is"));
        }
        let usual = Yarn::new(self.need("factor")?, self.original()?);
        Ok(RopeScaling::Yarn(Yarn {
            beta_fast: self.find("beta_fast")?.unwrap_or(usual.beta_fast),
            beta_slow: self.find("beta_slow")?.unwrap_or(usual.beta_slow),
            attention_factor: self.find("attention_factor")?.unwrap_or(usual.attention_factor),
            ..usual
        }))
    }

    fn long(&self) -> Result<RopeScaling> {
        let original = self.original()?;
        let longer = match self.find("factor")? {
            Some(factor) => f64::from(factor),
            None => self.most as f64 / original as f64,
        };
        let usual = LongRope::usual_factor(longer, original);
        Ok(RopeScaling::Long(LongRope {
            short: self.factors("short_factor")?,
            long: self.factors("long_factor")?,
            original_max_position_embeddings: original,
            attention_factor: self.find("attention_factor")?.unwrap_or(usual),
        }))
    }

    fn factors(&self, key: &str) -> Result<Vec<f32>> {
        let reason = || "a list of numbers above 0 is needed".into();
        let invalid = || Error::InvalidMetadata { key: key.into(), reason: reason() };
        let list = self.parameters.get(key).and_then(Value::as_array).ok_or_else(invalid)?;
        let number = |value: &Value| value.as_f64().map(|v| v as f32).filter(|&v| usable(v));
        list.iter().map(number).collect::<Option<_>>().ok_or_else(invalid)
    }
}
