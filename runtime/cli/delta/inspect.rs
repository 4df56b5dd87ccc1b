//! `epiphyte delta inspect` and `verify`: what a delta says, and whether it may be believed.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::public_keys;
use crate::output;
use epiphyte::error::{Error, Result};
use epiphyte::federated::{Delta, Manifest};

/// Show what a delta says of itself, once its signature was checked
#[derive(Args)]
pub(super) struct InspectArgs {
    /// The delta
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Check that deltas are whole and signed by one of these keys
#[derive(Args)]
pub(super) struct VerifyArgs {
    /// The deltas
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Public keys: a PEM, or a line each as `delta key` prints them
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    bytes: usize,
    norm: f64,
    modules: usize,
    manifest: &'a Manifest,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let delta = Delta::open(&args.path)?;
    let (name, bytes, norm) = (delta.name(), delta.n_bytes(), delta.norm());
    let (modules, manifest) = (delta.modules().len(), &delta.manifest);
    if args.json {
        return output::json(&Shown { name, bytes, norm, modules, manifest });
    }
    let Manifest { adapter, round, parent, factors, examples, .. } = manifest;
    let clip = manifest.clip.map_or_else(String::new, |clip| {
        format!(
            ", clipped to {} ({})",
            clip.norm,
            if clip.was_clipped { "it bit" } else { "loose" }
        )
    });
    let noise = manifest.noise.as_ref();
    let noise = noise.map_or_else(String::new, |noise| format!(", noise {}", noise.sigma));
    output::line(&format!(
        "{name}\n{adapter}, round {round}, from version {}: {} of {modules} modules in {}, {bytes} \
        bytes\nnorm {norm:.4}{clip}{noise}; {examples} examples or more\nsigned by {}",
        parent.version,
        factors.name(),
        manifest.quantisation.name(),
        manifest.signer
    ))
}

pub(super) fn verify(args: &VerifyArgs) -> Result<()> {
    let keys = public_keys(&args.trust)?;
    let mut verified = Vec::new();
    for path in &args.paths {
        let delta = Delta::open(path)?;
        let signer = &delta.manifest.signer;
        if !keys.contains(signer) {
            let reason = format!("signed by {signer}, which is not trusted");
            return Err(Error::InvalidFile { path: path.clone(), reason });
        }
        if !args.json {
            output::line(&format!("{}: {}", path.display(), delta.name()))?;
        }
        verified.push(serde_json::json!({
            "file": path, "name": delta.name(), "signer": signer.to_string(),
        }));
    }
    if args.json { output::json(&verified) } else { Ok(()) }
}
