//! A session in a file: safetensors with tokens, keys and values, adapters, and the fingerprint of
//! the base.
//!
//! Of an adapter the file holds id, weight and a hash of the factors, not the factors: it has to be
//! loaded to go on.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::base::fingerprint;
use crate::error::{Error, Result};
use crate::format::safetensors;
use crate::format::staged::Staged;
use crate::gpu::{Commands, Gpu, Tensor};
use crate::identity::check_format;
use crate::model::kv_cache::{Held, PAGE_LEN, Reach, first_page};

use super::executor::Executor;
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

/// Bytes that are copied from or to the cache at a time.
const PIECE_BYTES: u64 = 128 << 20;

/// The pages of a session in the cache, as its file has them: of each layer the keys, then the
/// values, page after page.
struct Pages {
    /// Layer, whether of its values, and page.
    blocks: Vec<(usize, bool, u32)>,
    /// By layer.
    counts: Vec<usize>,
    page_bytes: u64,
}

impl Pages {
    /// Those of the first `kv_len` positions that are kept.
    fn new(executor: &Executor, held: &Held, kv_len: usize) -> Self {
        let cache = &executor.cache;
        let used = kv_len.div_ceil(PAGE_LEN);
        let of = |layer: usize| match cache.reach(layer) {
            Reach::All => &held.all[..used],
            Reach::Window => &held.window[..used.saturating_sub(held.window_from)],
        };
        let layers = 0..cache.layers.len();
        let both = |layer| [false, true].map(|values| (layer, values));
        let pages = |(layer, values)| of(layer).iter().map(move |&page| (layer, values, page));
        Self {
            blocks: layers.clone().flat_map(both).flat_map(pages).collect(),
            counts: layers.map(|layer| of(layer).len()).collect(),
            page_bytes: cache.page_bytes,
        }
    }

    /// Blocks to be copied together, as many as `gpu` has a buffer for.
    fn pieces(&self, gpu: &Gpu) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = PIECE_BYTES.min(gpu.limits().max_buffer_size);
        let (step, end) = ((most / self.page_bytes).max(1) as usize, self.blocks.len());
        (0..end).step_by(step).map(move |start| start..end.min(start + step))
    }

    /// Where a block is in the cache.
    fn place<'e>(&self, executor: &'e Executor, block: usize) -> (&'e Tensor, u64) {
        let (layer, is_values, page) = self.blocks[block];
        let (keys, values) = &executor.cache.layers[layer];
        (if is_values { values } else { keys }, u64::from(page) * self.page_bytes)
    }
}

/// Writes `session` to a file that has its name once it is whole.
pub(super) fn save(session: &Session, path: &Path) -> Result<()> {
    let engine = &session.engine;
    let executor = engine.executor();
    let pages = Pages::new(&executor, &session.pages, session.kv_len);
    let adapters = adapters_of(&executor.registry, session).map_err(|e| invalid(path, e))?;
    drop(executor);
    let bytes = read_pages(engine, &pages)?;
    let metadata = HashMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("base_fingerprint".to_string(), engine.base.fingerprint.clone()),
        ("kv_dtype".to_string(), kv_dtype(engine).to_string()),
        ("kv_len".to_string(), session.kv_len.to_string()),
        ("adapters".to_string(), adapters),
        ("mixed".to_string(), session.mixed.to_string()),
    ]);
    let mut tensors = vec![("tokens".to_string(), Dtype::U32, vec![session.tokens.len()])];
    for (i, &count) in pages.counts.iter().enumerate() {
        let shape = vec![count, pages.page_bytes as usize];
        tensors.push((format!("layers.{i}.keys"), Dtype::U8, shape.clone()));
        tensors.push((format!("layers.{i}.values"), Dtype::U8, shape.clone()));
    }
    let head = safetensors::head(tensors, metadata).map_err(|e| invalid(path, e))?;
    let mut staged = Staged::write(path, &head)?;
    staged.append(bytemuck::cast_slice(&session.tokens))?;
    staged.append(&bytes)?;
    staged.commit()
}

/// The blocks, one after the other, by way of one staging buffer. Nobody changes them meanwhile:
/// the session is borrowed, and what it shares is not written to.
fn read_pages(engine: &Engine, pages: &Pages) -> Result<Vec<u8>> {
    let page_bytes = pages.page_bytes as usize;
    let mut bytes = vec![0; pages.blocks.len() * page_bytes];
    let mut staging = None;
    for piece in pages.pieces(&engine.gpu) {
        let staging = match &mut staging {
            Some(staging) => &*staging,
            none => {
                none.insert(engine.gpu.readback("session", piece.len() as u64 * pages.page_bytes)?)
            }
        };
        let mut commands = Commands::new(&engine.gpu)?;
        let executor = engine.executor();
        for (block, to) in piece.clone().zip((0..).step_by(page_bytes)) {
            let (tensor, at) = pages.place(&executor, block);
            commands.copy(tensor, at, staging, to, pages.page_bytes);
        }
        let copied = commands.submit();
        drop(executor);
        let to = &mut bytes[piece.start * page_bytes..piece.end * page_bytes];
        engine.gpu.take(staging, copied, to)?;
    }
    Ok(bytes)
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

/// Puts the file's keys and values into pages of the session's own.
fn fill(session: &mut Session, file: &SafeTensors<'_>, kv_len: usize, path: &Path) -> Result<()> {
    let engine = Arc::clone(&session.engine);
    session.reserve(kv_len)?;
    let mut executor = engine.executor();
    if let Some(window) = engine.base.config.window() {
        session.pages.window_from = first_page(kv_len, window);
        let whole = (kv_len, kv_len);
        executor.slide(&engine.gpu, &mut session.pages, whole, &[])?;
    }
    let pages = Pages::new(&executor, &session.pages, kv_len);
    drop(executor);
    let page_bytes = pages.page_bytes as usize;
    let load = |name: String, count: usize| {
        let view = file.tensor(&name).map_err(|e| invalid(path, e))?;
        if view.shape() != [count, page_bytes] || view.dtype() != Dtype::U8 {
            return Err(invalid(
                path,
                format!(
                    "tensor `{name}` has shape {:?}, not [{count}, {page_bytes}]",
                    view.shape()
                ),
            ));
        }
        Ok(view.data())
    };
    let mut blocks: Vec<&[u8]> = Vec::with_capacity(pages.blocks.len());
    for (i, &count) in pages.counts.iter().enumerate() {
        blocks.extend(load(format!("layers.{i}.keys"), count)?.chunks_exact(page_bytes));
        blocks.extend(load(format!("layers.{i}.values"), count)?.chunks_exact(page_bytes));
    }
    write_pages(&engine, &pages, &blocks)?;
    session.kv_len = kv_len;
    session.own_work = false;
    Ok(())
}

/// Sends the blocks to their pages, by way of a buffer for each piece.
fn write_pages(engine: &Engine, pages: &Pages, blocks: &[&[u8]]) -> Result<()> {
    for piece in pages.pieces(&engine.gpu) {
        let staging = engine.gpu.upload("session", &blocks[piece.clone()].concat())?;
        let mut commands = Commands::new(&engine.gpu)?;
        let executor = engine.executor();
        for (block, from) in piece.zip((0..).step_by(pages.page_bytes as usize)) {
            let (tensor, at) = pages.place(&executor, block);
            commands.copy(&staging, from, tensor, at, pages.page_bytes);
        }
        commands.submit();
    }
    engine.gpu.check()
}

fn kv_dtype(engine: &Engine) -> &'static str {
    if engine.kv_f16 { "F16" } else { "F32" }
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::InvalidFile { path: path.into(), reason: reason.to_string() }
}
