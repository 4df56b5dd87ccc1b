//! A session in a file: safetensors with tokens, keys and values, adapters, and the fingerprint of
//! the base.
//!
//! Of an adapter the file holds id, weight and a hash of the factors, not the factors: it has to be
//! loaded to go on.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde::{Deserialize, Serialize};

use crate::base::fingerprint;
use crate::error::{Error, Result};
use crate::gpu::Tensor;
use crate::identity::check_format;
use crate::model::kv_cache::PAGE_LEN;

use super::residents::Registry;
use super::{Change, Engine, Session};

const FORMAT: &str = "epiphyte.session.3";
/// Letters of a file's name for an adapter, in an error.
const MAX_ID: usize = 128;

/// An adapter of a saved session.
#[derive(Serialize, Deserialize)]
struct SavedAdapter {
    id: String,
    /// [`crate::adapter::Adapter::digest`].
    digest: String,
    /// An f32, widened so that JSON keeps every bit.
    weight: f64,
}

/// Writes `session` to a temporary name beside `path`, then renames it.
pub(super) fn save(session: &Session, path: &Path) -> Result<()> {
    let engine = &session.engine;
    let executor = engine.executor();
    let page_bytes = executor.cache.page_bytes;
    let used = session.kv_len.div_ceil(PAGE_LEN);
    let gather = |tensor: &Tensor| -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(used * page_bytes as usize);
        for &page in &session.pages[..used] {
            bytes.extend(engine.gpu.read::<u8>(
                tensor,
                u64::from(page) * page_bytes,
                page_bytes as usize,
            )?);
        }
        Ok(bytes)
    };
    let mut data: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let tokens = bytemuck::cast_slice::<u32, u8>(&session.tokens).to_vec();
    data.push(("tokens".into(), Dtype::U32, vec![session.tokens.len()], tokens));
    for (i, (keys, values)) in executor.cache.layers.iter().enumerate() {
        let shape = vec![used, page_bytes as usize];
        data.push((format!("layers.{i}.keys"), Dtype::U8, shape.clone(), gather(keys)?));
        data.push((format!("layers.{i}.values"), Dtype::U8, shape, gather(values)?));
    }
    let adapters = adapters_of(&executor.registry, session).map_err(|e| invalid(path, e))?;
    drop(executor);
    let metadata = HashMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("base_fingerprint".to_string(), engine.base.fingerprint.clone()),
        ("kv_dtype".to_string(), kv_dtype(engine).to_string()),
        ("kv_len".to_string(), session.kv_len.to_string()),
        ("adapters".to_string(), adapters),
        ("mixed".to_string(), session.mixed.to_string()),
    ]);
    let views = data
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| invalid(path, e))?;
    let temporary = path.with_extension("tmp");
    serialize_to_file(views, Some(metadata), &temporary).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => Error::io(&temporary, e),
        e => invalid(path, e),
    })?;
    std::fs::File::open(&temporary)
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::io(&temporary, e))?;
    std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}

/// The session's adapters as JSON.
fn adapters_of(registry: &Registry, session: &Session) -> serde_json::Result<String> {
    let digests = registry.adapter_digests(session.set);
    let saved = |((id, weight), digest): (&(String, f32), String)| SavedAdapter {
        id: id.clone(),
        digest,
        weight: f64::from(*weight),
    };
    serde_json::to_string(
        &registry.adapters(session.set).iter().zip(digests).map(saved).collect::<Vec<_>>(),
    )
}

/// Checks the whole file, then makes a session of it.
pub(super) fn restore(engine: &Arc<Engine>, path: &Path) -> Result<Session> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| invalid(path, e))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let field = |key: &str| metadata.get(key).map(String::as_str).unwrap_or_default();
    check_format(path, field("format"), FORMAT)?;
    fingerprint::check(field("base_fingerprint"), &engine.base.fingerprint)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(path, e))?;
    let tokens = file.tensor("tokens").map_err(|e| invalid(path, e))?;
    if tokens.dtype() != Dtype::U32 {
        return Err(invalid(path, format!("tensor `tokens` is {:?}, not U32", tokens.dtype())));
    }
    let tokens: Vec<u32> =
        tokens.data().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let kv_len = field("kv_len").parse::<usize>().ok().filter(|&n| n <= tokens.len());
    let kv_len =
        kv_len.ok_or_else(|| invalid(path, "kv_len is missing or longer than the tokens"))?;
    let adapters: Vec<SavedAdapter> = serde_json::from_str(field("adapters"))
        .map_err(|e| invalid(path, format!("its adapters are no list (column {})", e.column())))?;
    let mixed =
        field("mixed").parse().map_err(|_| invalid(path, "mixed is neither true nor false"))?;
    check_adapters(&engine.executor().registry, &adapters)?;
    let mut session = engine.session();
    session.push_tokens(&tokens)?;
    let set: Vec<(&str, f32)> =
        adapters.iter().map(|saved| (saved.id.as_str(), saved.weight as f32)).collect();
    session.set_adapters(&Change { adapters: &set, ..Change::default() })?;
    // A cache in another element type is computed anew rather than converted.
    if field("kv_dtype") == kv_dtype(engine) {
        fill(&mut session, &file, kv_len, path)?;
        session.mixed = mixed && kv_len > 0;
    }
    Ok(session)
}

/// That each is loaded and is the one the session was saved with.
fn check_adapters(registry: &Registry, adapters: &[SavedAdapter]) -> Result<()> {
    for SavedAdapter { id, digest, .. } in adapters {
        let shown = || id.chars().take(MAX_ID).collect();
        match registry.adapter_digest(id) {
            None => return Err(Error::AdapterNotLoaded { id: shown() }),
            Some(got) if got != *digest => {
                let expected = digest.chars().take(MAX_ID).collect();
                return Err(Error::AdapterMismatch { id: shown(), expected, got });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn fill(session: &mut Session, file: &SafeTensors<'_>, kv_len: usize, path: &Path) -> Result<()> {
    let engine = Arc::clone(&session.engine);
    let mut executor = engine.executor();
    let page_bytes = executor.cache.page_bytes as usize;
    let used = kv_len.div_ceil(PAGE_LEN);
    let load = |name: String| -> Result<Cow<'_, [u8]>> {
        let view = file.tensor(&name).map_err(|e| invalid(path, e))?;
        if view.shape() != [used, page_bytes] || view.dtype() != Dtype::U8 {
            return Err(invalid(
                path,
                format!("tensor `{name}` has shape {:?}, not [{used}, {page_bytes}]", view.shape()),
            ));
        }
        Ok(Cow::Borrowed(view.data()))
    };
    let mut layers = Vec::with_capacity(executor.cache.layers.len());
    for i in 0..executor.cache.layers.len() {
        layers.push((load(format!("layers.{i}.keys"))?, load(format!("layers.{i}.values"))?));
    }
    session.reserve(&mut executor, kv_len)?;
    for (i, &page) in session.pages.iter().enumerate() {
        let (at, from) = (u64::from(page) * page_bytes as u64, i * page_bytes);
        for ((keys, values), (saved_keys, saved_values)) in
            executor.cache.layers.iter().zip(&layers)
        {
            engine.gpu.write(keys, at, &saved_keys[from..from + page_bytes]);
            engine.gpu.write(values, at, &saved_values[from..from + page_bytes]);
        }
    }
    session.kv_len = kv_len;
    session.own_work = false;
    Ok(())
}

fn kv_dtype(engine: &Engine) -> &'static str {
    if engine.kv_f16 { "F16" } else { "F32" }
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::InvalidFile { path: path.into(), reason: reason.to_string() }
}
