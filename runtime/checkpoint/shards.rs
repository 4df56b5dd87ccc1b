//! The weights of a checkpoint: which file has which tensor, and its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::{INDEX, WEIGHTS, text};
use crate::base::ModelConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::safetensors::{SafetensorsFile, gguf_type};

/// Shards of a checkpoint, at most.
const MOST: usize = 4096;
/// What names of tensors end with that are computed, not learnt.
const COMPUTED: &str = ".rotary_emb.inv_freq";

/// The open files of a checkpoint and the places of its tensors.
pub(crate) struct Shards {
    files: Vec<Mutex<SafetensorsFile<BufReader<File>>>>,
    n_bytes: u64,
    /// By Hugging Face's name.
    tensors: BTreeMap<String, Place>,
}

/// Where a tensor is.
pub(crate) struct Place {
    file: usize,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens the files and holds their tensors against those that `config` implies.
    pub(super) fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let index = folder.join(INDEX);
        let listed = if index.exists() { Some(read_index(&index)?) } else { None };
        let names: BTreeSet<&str> = match &listed {
            Some(listed) => listed.values().map(String::as_str).collect(),
            None => [WEIGHTS].into(),
        };
        let mut all = Self { files: Vec::new(), n_bytes: 0, tensors: BTreeMap::new() };
        for name in names {
            all.add(&folder.join(name), |tensor| {
                listed
                    .as_ref()
                    .is_none_or(|listed| listed.get(tensor).is_some_and(|file| file == name))
            })?;
        }
        let lost = listed
            .iter()
            .flatten()
            .find(|(name, _)| !all.tensors.contains_key(*name) && !name.ends_with(COMPUTED));
        if let Some((name, _)) = lost {
            return Err(Error::MissingTensor { name: name.clone() });
        }
        all.check(config)?;
        Ok(all)
    }

    /// Adds a file's tensors, each of which has to be `listed` for it.
    fn add(&mut self, path: &Path, listed: impl Fn(&str) -> bool) -> Result<()> {
        let file = SafetensorsFile::open(path).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                Error::InvalidFile {
                    path: path.into(),
                    reason: "this file of the checkpoint is missing; download it into the folder"
                        .into(),
                }
            }
            other => other,
        })?;
        for (name, info) in file.tensors().into_iter().filter(|(name, _)| !name.ends_with(COMPUTED))
        {
            if !listed(&name) {
                let reason = format!(
                    "{INDEX} does not list it for the file that holds it; download it again"
                );
                return Err(Error::InvalidTensor { name, reason });
            }
            let dtype = gguf_type(info.dtype).ok_or_else(|| Error::Unsupported {
                what: format!("tensor `{name}` of type {:?}", info.dtype),
                hint: "F32, F16 and BF16 are".into(),
            })?;
            let place = Place { file: self.files.len(), dtype, shape: info.shape.clone() };
            self.tensors.insert(name, place);
        }
        self.n_bytes += file.n_bytes();
        self.files.push(Mutex::new(file));
        Ok(())
    }

    /// That every tensor is there in its shape, and no other.
    fn check(&mut self, config: &ModelConfig) -> Result<()> {
        if config.tie_word_embeddings && self.tensors.remove("lm_head.weight").is_some() {
            log::warn!("`lm_head.weight` of a model whose head is the embedding; passed over");
        }
        let expected = config.tensors();
        for (name, shape) in &expected {
            let place = self.tensors.get(name);
            let place = place.ok_or_else(|| Error::MissingTensor { name: name.clone() })?;
            if place.shape != *shape {
                let reason = format!(
                    "its shape is {:?}, config.json implies {shape:?}; download it again",
                    place.shape
                );
                return Err(Error::InvalidTensor { name: name.clone(), reason });
            }
        }
        let expected: BTreeSet<_> = expected.into_iter().map(|(name, _)| name).collect();
        match self.tensors.keys().find(|name| !expected.contains(*name)) {
            Some(extra) => Err(Error::Unsupported {
                what: format!("tensor `{extra}` in a llama checkpoint"),
                hint: "plain llama models without biases or experts are".into(),
            }),
            None => Ok(()),
        }
    }

    /// A tensor's type, shape and file.
    pub(crate) fn get(&self, name: &str) -> Result<&Place> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor { name: name.into() })
    }

    /// Rows of a tensor as the file has them.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let file = &self.files[self.get(name)?.file];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.read_row_bytes(name, rows)
    }

    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let invalid = |reason: String| Error::InvalidFile { path: path.into(), reason };
    let index: Index = serde_json::from_str(&text(path)?).map_err(|e| {
        invalid(format!("no `weight_map` of tensors to files ({e}); download it again"))
    })?;
    // A name is that of a file in the folder, not a way out of it.
    let is_plain = |name: &str| Path::new(name).file_name().is_some_and(|own| own == name);
    if let Some((tensor, _)) = index.weight_map.iter().find(|(_, file)| !is_plain(file)) {
        let tensor: String = tensor.chars().take(64).collect();
        return Err(invalid(format!("the file of `{tensor}` is no name of a file in the folder")));
    }
    let count = index.weight_map.values().collect::<BTreeSet<_>>().len();
    if count == 0 || count > MOST {
        return Err(invalid(format!("{count} files; 1 to {MOST} are read")));
    }
    Ok(index.weight_map)
}
