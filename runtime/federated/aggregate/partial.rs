//! A part of a round, as a file: sums, or the deltas themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use safetensors::Dtype;

use super::super::invalid;
use super::super::manifest::parse;
use super::super::quantise::Encoded;
use super::super::sealed::{MANIFEST, Sealed, seal};
use super::super::sign::{PublicKey, Signer};
use super::super::wire::Delta;
use super::admit::{Admitted, Refusal};
use super::collect::{Collected, Taken};
use super::exact::{Sum, Sums};
use super::report::Entry;
use crate::adapter::tensor_name;
use crate::error::Result;

const FORMAT: &str = "epiphyte.partial.1";
/// Sums of products of changes; those of whole products were `probe.`.
const PROBE: &str = "cross.";
/// What became of each delta, as JSON: too much for a header.
const ENTRIES: &str = "entries";

/// What a part says of itself.
#[derive(Serialize, Deserialize)]
struct PartManifest {
    /// What must be the same in all parts: the parent and the options.
    round: String,
    /// The sum of the weights, in steps of 2^-80, in decimal.
    weight: String,
    n_bytes: u64,
    signer: PublicKey,
}

#[derive(Serialize, Deserialize)]
struct PartEntry {
    entry: Entry,
    /// Of those that are in the sums.
    admitted: Option<[f64; 2]>,
}

/// Whether a file says that it is one.
pub(super) fn is_part(sealed: &Sealed) -> bool {
    sealed.format() == FORMAT
}

pub(super) fn open(sealed: Sealed) -> Result<Sealed> {
    sealed.hashed(FORMAT, FORMAT)
}

fn round_key(collected: &Collected<'_>) -> String {
    let manifest = &collected.round.parent.manifest;
    let key = collected.round.options.key();
    format!("{} {} {} {key}", manifest.adapter, manifest.version, manifest.digest)
}

pub(super) fn write(collected: &Collected<'_>, signer: &dyn Signer) -> Result<Vec<u8>> {
    let numbers = |taken: &Taken| [taken.admitted.weight, taken.admitted.shrink];
    let taken = collected.taken.values().map(|taken| (taken.entry, numbers(taken)));
    let admitted: BTreeMap<_, _> = taken.collect();
    let entries: Vec<_> = collected
        .entries
        .iter()
        .enumerate()
        .map(|(i, entry)| PartEntry { entry: entry.clone(), admitted: admitted.get(&i).copied() })
        .collect();
    let json = serde_json::to_vec(&entries).map_err(|e| invalid(ENTRIES, e.to_string()))?;
    let manifest = PartManifest {
        round: round_key(collected),
        weight: collected.weight.0.to_string(),
        n_bytes: collected.n_bytes,
        signer: signer.public_key(),
    };
    let text = serde_json::to_string(&manifest).map_err(|e| invalid(MANIFEST, e.to_string()))?;
    let sums = collected.sums.iter().map(|((path, factor), s)| (tensor_name(*path, *factor), s));
    let probes = collected.probes.iter().flatten();
    let probes = probes.map(|(path, probe)| (format!("{PROBE}{path}"), &probe.sums));
    let sums = sums.chain(probes).map(|(name, sums)| {
        let bytes = sums.steps().flat_map(i128::to_le_bytes).collect();
        (name, Encoded { dtype: Dtype::I64, shape: vec![sums.len(), 2], bytes })
    });
    let deltas = collected.kept.iter().map(|(name, (delta, _))| {
        let bytes = delta.bytes().to_vec();
        (name.clone(), Encoded { dtype: Dtype::U8, shape: vec![bytes.len()], bytes })
    });
    let entries = Encoded { dtype: Dtype::U8, shape: vec![json.len()], bytes: json };
    let tensors = sums.chain(deltas).chain([(ENTRIES.into(), entries)]).collect::<Vec<_>>();
    seal(FORMAT, [(MANIFEST.into(), text)].into(), &tensors, signer)
}

/// Adds a part to what came before. One that no worker signed is an entry that says so: anyone may
/// have put it among the deltas.
///
/// Errors: `InvalidDelta` for another round or other options, sums of other sizes, a device that is
/// there already.
pub(super) fn add(collected: &mut Collected<'_>, file: String, sealed: &Sealed) -> Result<()> {
    let manifest = match checked(collected, sealed) {
        Ok(manifest) => manifest,
        Err(e) => {
            let refusal = Refusal::Unreadable { reason: e.to_string() };
            collected.entries.push(Entry::refused(file, refusal));
            return Ok(());
        }
    };
    if manifest.round != round_key(collected) {
        return Err(invalid("part", "of another round, or made with other options"));
    }
    let entries = sealed.tensor(ENTRIES).map(|(_, bytes)| serde_json::from_slice(bytes));
    let entries: Vec<PartEntry> =
        entries.and_then(Result::ok).ok_or_else(|| invalid(ENTRIES, "missing or damaged"))?;
    if !collected.is_sum() {
        return add_deltas(collected, entries, sealed);
    }
    let weight = manifest.weight.parse::<i128>();
    let weight = weight.map_err(|_| invalid("part", "its weight is no whole number"))?;
    for PartEntry { entry, admitted } in entries {
        let index = collected.entries.len();
        if let Some([weight, shrink]) = admitted {
            let key = entry.key.clone().unwrap_or_default();
            let name = entry.name.clone().unwrap_or_default();
            let admitted = Admitted { weight, staleness: entry.staleness, shrink };
            let taken = Taken { entry: index, path: None, name, admitted };
            if collected.taken.insert(key.clone(), taken).is_some() {
                let reason = format!(
                    "device {key} is in another part too; split deltas by key, so that one part \
                    has all of a device's"
                );
                return Err(invalid("part", reason));
            }
        }
        collected.entries.push(entry);
    }
    collected.n_bytes += manifest.n_bytes;
    let Sum(sum) = &mut collected.weight;
    *sum = sum.checked_add(weight).ok_or_else(|| invalid("part", "its weight is too large"))?;
    for ((path, factor), sums) in &mut collected.sums {
        merge(sums, sealed, &tensor_name(*path, *factor))?;
    }
    if let Some(probes) = &mut collected.probes {
        let name = |path| format!("{PROBE}{path}");
        // What a part has lost is lost for all.
        probes.retain(|path, _| sealed.tensor(&name(*path)).is_some());
        for (path, probe) in probes {
            merge(&mut probe.sums, sealed, &name(*path))?;
        }
    }
    Ok(())
}

/// The manifest of a part that a worker signed.
fn checked(collected: &Collected<'_>, sealed: &Sealed) -> Result<PartManifest> {
    let manifest: PartManifest = parse(sealed.manifest()?)?;
    if !collected.round.trust.workers.contains(&manifest.signer) {
        return Err(invalid("part", format!("{} may not sign parts", manifest.signer)));
    }
    sealed.verify(&manifest.signer)?;
    Ok(manifest)
}

fn merge(sums: &mut Sums, sealed: &Sealed, name: &str) -> Result<()> {
    let others = sealed.tensor(name).filter(|(place, _)| place.dtype == Dtype::I64);
    let others = others.map(|(_, bytes)| bytes.as_chunks().0).unwrap_or_default();
    match others.len() == sums.len() {
        true => {
            sums.merge(others.iter().map(|b| i128::from_le_bytes(*b)));
            Ok(())
        }
        false => Err(invalid(name, "the part has no sums of its size")),
    }
}

fn add_deltas(
    collected: &mut Collected<'_>,
    entries: Vec<PartEntry>,
    sealed: &Sealed,
) -> Result<()> {
    let file = |name: &str| {
        let of = entries.iter().find(|part| part.entry.name.as_deref() == Some(name));
        of.map_or_else(String::new, |part| part.entry.file.clone())
    };
    for name in sealed.tensors.keys().filter(|name| *name != ENTRIES) {
        if let Some((_, bytes)) = sealed.tensor(name) {
            // What came within a part is checked like anything else.
            let delta = Delta::from_bytes(bytes.to_vec())?;
            collected.add(file(name), None, delta)?;
        }
    }
    let left_out = |part: &PartEntry| part.admitted.is_none();
    collected.entries.extend(entries.into_iter().filter(left_out).map(|part| part.entry));
    Ok(())
}
