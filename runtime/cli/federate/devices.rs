//! Who takes part in a simulation: the examples, the key and what quantising lost, of each device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::Value;

use epiphyte::error::{Error, Result};
use epiphyte::federated::simulate::{Split, split};
use epiphyte::federated::{KeyKind, Residual, SigningKey};
use epiphyte::train::data::{Dataset, Encoder};

/// What the devices have.
#[derive(Args)]
pub(super) struct DeviceArgs {
    /// Examples: a folder of JSONL files, each a device's, or one file, spread over --clients
    #[arg(short, long, value_name = "DIR|FILE")]
    pub(super) data: PathBuf,
    /// Devices [default: as many as the folder has files; of one file 10]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) clients: Option<u32>,
    /// Spread the labels of the file unevenly, by a Dirichlet distribution of this concentration:
    /// 0.1 gives a device few of them [default: every device gets alike]
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// The key of a line that is its label [default: its answer]
    #[arg(long, value_name = "KEY", requires = "alpha")]
    label: Option<String>,
}

/// A device.
pub(super) struct Device {
    pub(super) data: Arc<Dataset>,
    pub(super) key: SigningKey,
    pub(super) residual: Residual,
}

impl Device {
    fn new(data: Dataset) -> Result<Self> {
        let key = SigningKey::generate(KeyKind::P256)?;
        Ok(Self { data: Arc::new(data), key, residual: Residual::new() })
    }
}

impl DeviceArgs {
    /// Reads what each device has.
    ///
    /// Errors: as [`Dataset::read_jsonl`] and [`split`]; [`Error::InvalidArgument`] for a folder
    /// with fewer files than devices; [`Error::InvalidFile`] for a line without its label.
    pub(super) fn read(&self, encoder: &Encoder<'_>, seed: u64) -> Result<Vec<Device>> {
        if self.data.is_dir() { self.of_folder(encoder) } else { self.of_file(encoder, seed) }
    }

    fn of_folder(&self, encoder: &Encoder<'_>) -> Result<Vec<Device>> {
        let entries = std::fs::read_dir(&self.data).map_err(|e| Error::io(&self.data, e))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
        files.sort();
        let clients = self.clients.map_or(files.len(), |clients| clients as usize);
        if files.is_empty() || files.len() < clients || self.alpha.is_some() {
            let (found, folder) = (files.len(), self.data.display());
            let reason = match self.alpha {
                Some(_) => "it spreads one file; a folder's files are the devices'".into(),
                None => format!("{clients}, but {folder} has {found} files that end in .jsonl"),
            };
            let name = if self.alpha.is_some() { "alpha" } else { "clients" };
            return Err(Error::InvalidArgument { name, reason });
        }
        files.truncate(clients);
        files.iter().map(|path| Device::new(Dataset::read_jsonl(path, encoder)?)).collect()
    }

    fn of_file(&self, encoder: &Encoder<'_>, seed: u64) -> Result<Vec<Device>> {
        let path = &self.data;
        // What can't be used is named by its line in the file, not by that in a device's share.
        Dataset::read_jsonl(path, encoder)?;
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let numbered = (1..).zip(text.trim_start_matches('\u{feff}').lines());
        let lines: Vec<(usize, &str)> =
            numbered.filter(|(_, line)| !line.trim().is_empty()).collect();
        let label = |&(number, line): &(usize, &str)| self.label_of(path, number, line);
        let labels = lines.iter().map(label).collect::<Result<Vec<_>>>()?;
        let clients = self.clients.unwrap_or(10) as usize;
        let places = split(&labels, &Split { clients, alpha: self.alpha, seed })?;
        let device = |places: &Vec<usize>| {
            let own: Vec<_> = places.iter().map(|place| lines[*place].1).collect();
            let own = own.join("\n");
            Device::new(Dataset::read_jsonl_from(own.as_bytes(), path, encoder, |_, _| {})?)
        };
        places.iter().map(device).collect()
    }

    /// The label of a line; nothing where labels do not count.
    fn label_of(&self, path: &Path, number: usize, line: &str) -> Result<String> {
        if self.alpha.is_none() {
            return Ok(String::new());
        }
        let record: Value = serde_json::from_str(line).unwrap_or_default();
        let found = match &self.label {
            Some(key) => record.get(key),
            None => record.get("completion").or_else(|| {
                record.get("messages").and_then(Value::as_array)?.last()?.get("content")
            }),
        };
        match found {
            Some(Value::String(label)) => Ok(label.clone()),
            Some(other) if !other.is_null() => Ok(other.to_string()),
            _ => {
                let key = self.label.as_deref().unwrap_or("completion");
                let reason = format!("line {number} has no `{key}` to spread it by; see `--label`");
                Err(Error::InvalidFile { path: path.into(), reason })
            }
        }
    }
}
