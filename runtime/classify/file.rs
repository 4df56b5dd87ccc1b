//! A classifier's file: safetensors with a tag, the base's name, and how vectors are made.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{Classifier, Features};
use crate::error::{Error, Result};
use crate::format::safetensors::{SafetensorsFile, floats, to_bytes};
use crate::format::staged::Staged;
use crate::identity::check_format;

const FORMAT_KEY: &str = "epiphyte.format";
const FORMAT: &str = "epiphyte.classifier.1";
const BASE: &str = "epiphyte.base_fingerprint";
const LABELS: &str = "epiphyte.labels";
const FEATURES: &str = "epiphyte.features";

impl Classifier {
    /// Reads a file that [`Classifier::save`] wrote.
    ///
    /// Errors: [`Error::Io`]; [`Error::FormatVersion`]; [`Error::InvalidFile`] naming the key and
    /// [`Error::InvalidTensor`] the tensor that is wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = SafetensorsFile::open(path)?;
        check_format(path, file.metadata(FORMAT_KEY).unwrap_or_default(), FORMAT)?;
        let invalid = |key: &str| Error::InvalidFile {
            path: path.into(),
            reason: format!("`{key}` is missing or damaged; train it again"),
        };
        let text = |key: &str| file.metadata(key).map(str::to_string).ok_or_else(|| invalid(key));
        let base_fingerprint = text(BASE)?;
        let labels: Vec<String> =
            serde_json::from_str(&text(LABELS)?).map_err(|_| invalid(LABELS))?;
        let features: Features =
            serde_json::from_str(&text(FEATURES)?).map_err(|_| invalid(FEATURES))?;
        if labels.len() < 2 || !labels.is_sorted_by(|a, b| a < b) {
            return Err(invalid(LABELS));
        }
        let mut read = |name: &str, len: Option<usize>| {
            let (dtype, bytes) = file.read(name)?;
            let values = floats(name, dtype, &bytes)?;
            let fits = len.is_none_or(|len| values.len() == len) && !values.is_empty();
            let wrong =
                |reason: &str| Error::InvalidTensor { name: name.into(), reason: reason.into() };
            if !fits {
                return Err(wrong("its size is not that of labels and vectors; train it again"));
            }
            let finite = values.iter().all(|value| value.is_finite());
            if finite { Ok(values) } else { Err(wrong("it holds NaN or infinity; train it again")) }
        };
        let center = read("center", None)?;
        let scale = read("scale", Some(center.len()))?;
        let weight = read("weight", labels.len().checked_mul(center.len()))?;
        let bias = read("bias", Some(labels.len()))?;
        if scale.iter().any(|scale| *scale <= 0.0) {
            let reason = "it is not above 0; train it again".into();
            return Err(Error::InvalidTensor { name: "scale".into(), reason });
        }
        Ok(Self { labels, base_fingerprint, features, center, scale, weight, bias })
    }

    /// Writes a file, whole or not at all.
    ///
    /// Errors: [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let refused = |e: &dyn std::fmt::Display| Error::InvalidFile {
            path: path.into(),
            reason: format!("safetensors: {e}"),
        };
        let (labels, width) = (self.labels.len(), self.width());
        let tensors = [
            ("bias", vec![labels], &self.bias),
            ("center", vec![width], &self.center),
            ("scale", vec![width], &self.scale),
            ("weight", vec![labels, width], &self.weight),
        ];
        let views = tensors.iter().map(|(name, shape, values)| {
            Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))?))
        });
        let views = views
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| refused(&e))?;
        let json = |value: serde_json::Result<String>| value.map_err(|e| refused(&e));
        let metadata = HashMap::from([
            (FORMAT_KEY.to_string(), FORMAT.to_string()),
            (BASE.to_string(), self.base_fingerprint.clone()),
            (LABELS.to_string(), json(serde_json::to_string(&self.labels))?),
            (FEATURES.to_string(), json(serde_json::to_string(&self.features))?),
        ]);
        Staged::write(path, &to_bytes(views, metadata).map_err(|e| refused(&e))?)?.commit()
    }
}
