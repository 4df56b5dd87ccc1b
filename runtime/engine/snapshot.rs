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

use crate::base::{ModelConfig, fingerprint};
use crate::error::{Error, Result};
use crate::format::safetensors;
use crate::format::staged::Staged;
use crate::gpu::{Commands, Gpu, Tensor};
use crate::identity::check_format;
use crate::kernels::attention;
use crate::model::kv_cache::PageShape;
use crate::model::pages::{Held, PAGE_LEN, PageRef, Reach, first_page};

use super::executor::Executor;
use super::pass::How;
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
    blocks: Vec<Block>,
    page_bytes: u64,
}

/// A page of a layer's keys, or of its values.
struct Block {
    layer: usize,
    is_values: bool,
    page: PageRef,
}

/// Numbers of the pages of `kv_len` positions that a layer's part of a file has: with a window those
/// that the next position sees.
fn kept(config: &ModelConfig, layer: usize, kv_len: usize) -> Range<usize> {
    let (window, end) = (config.attention(layer).window, kv_len.div_ceil(PAGE_LEN));
    window.map_or(0, |window| first_page(kv_len, window)).min(end)..end
}

impl Pages {
    /// Those of the first `kv_len` positions.
    fn new(engine: &Engine, held: &Held, kv_len: usize) -> Self {
        let config = &engine.base.config;
        let mut blocks = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let pages = held.pages(Reach::of(config, layer), kept(config, layer, kv_len));
            for is_values in [false, true] {
                let block = |page: &PageRef| Block { layer, is_values, page: page.clone() };
                blocks.extend(pages.iter().map(block));
            }
        }
        Self { blocks, page_bytes: page_bytes(engine) }
    }

    /// Blocks to be copied together, as many as `gpu` has a buffer for.
    fn pieces(&self, gpu: &Gpu) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = PIECE_BYTES.min(gpu.limits().max_buffer_size);
        let (step, end) = ((most / self.page_bytes).max(1) as usize, self.blocks.len());
        (0..end).step_by(step).map(move |start| start..end.min(start + step))
    }

    /// Where a block is in the cache.
    fn place<'e>(&self, executor: &'e Executor, block: usize) -> (&'e Tensor, u64) {
        let Block { layer, is_values, page } = &self.blocks[block];
        let (keys, values) = &executor.cache.layers[*layer];
        (if *is_values { values } else { keys }, u64::from(page.number()) * self.page_bytes)
    }
}

/// Writes `session` to a file that has its name once it is whole.
pub(super) fn save(session: &Session, path: &Path) -> Result<()> {
    let engine = &session.engine;
    let adapters = adapters_of(engine.seat().registry(), session).map_err(|e| invalid(path, e))?;
    let Computed { kv_len, pages, bytes } = match engine.surviving(|| computed(session)) {
        // What can't be read is computed again.
        Err(Error::Background | Error::DeviceLost(_)) => Computed::nothing(engine),
        computed => computed?,
    };
    let metadata = HashMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("base_fingerprint".to_string(), engine.base.fingerprint.clone()),
        ("kv_dtype".to_string(), kv_kind(engine).to_string()),
        ("kv_len".to_string(), kv_len.to_string()),
        ("adapters".to_string(), adapters),
        ("computed".to_string(), session.how.len().to_string()),
        ("narrow".to_string(), narrow_runs(&session.how).map_err(|e| invalid(path, e))?),
        ("mixed".to_string(), (session.mixed && kv_len > 0).to_string()),
    ]);
    let mut tensors = vec![("tokens".to_string(), Dtype::U32, vec![session.tokens.len()])];
    for i in 0..engine.base.config.num_hidden_layers {
        let count = kept(&engine.base.config, i, kv_len).len();
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

/// What of a session is in its file beside what was said.
struct Computed {
    kv_len: usize,
    pages: Pages,
    bytes: Vec<u8>,
}

impl Computed {
    fn nothing(engine: &Engine) -> Self {
        Self { kv_len: 0, pages: Pages::new(engine, &Held::default(), 0), bytes: Vec::new() }
    }
}

/// Keys and values of a session, if they are still there.
fn computed(session: &Session) -> Result<Computed> {
    let engine = &session.engine;
    // They stay until they are read.
    let _kept = engine.recoveries.enter_first();
    if session.pages.is_gone() {
        return Ok(Computed::nothing(engine));
    }
    // The last token is fed again, and sees what its own window does.
    let last = usize::from(session.window().is_some());
    let end = session.tokens.len().saturating_sub(last);
    let kv_len = session.kv_len.min(end);
    let pages = Pages::new(engine, &session.pages, kv_len);
    let bytes = read_pages(engine, &pages)?;
    Ok(Computed { kv_len, pages, bytes })
}

/// The blocks, one after the other, by way of one staging buffer. Nobody changes them meanwhile:
/// the session is borrowed, and what it shares is not written to.
fn read_pages(engine: &Engine, pages: &Pages) -> Result<Vec<u8>> {
    let page_bytes = pages.page_bytes as usize;
    let mut bytes = vec![0; pages.blocks.len() * page_bytes];
    let mut staging = None;
    for piece in pages.pieces(engine.gpu()) {
        let staging = match &mut staging {
            Some(staging) => &*staging,
            none => none
                .insert(engine.gpu().readback("session", piece.len() as u64 * pages.page_bytes)?),
        };
        let mut commands = Commands::new(engine.gpu())?;
        let executor = engine.executor()?;
        for (block, to) in piece.clone().zip((0..).step_by(page_bytes)) {
            let (tensor, at) = pages.place(&executor, block);
            commands.copy(tensor, at, staging, to, pages.page_bytes);
        }
        let copied = commands.submit();
        drop(executor);
        let to = &mut bytes[piece.start * page_bytes..piece.end * page_bytes];
        engine.gpu().take(staging, copied, to)?;
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

/// Positions that were computed in narrow passes, as JSON: where each run of them begins and ends,
/// and the parts of their attention.
fn narrow_runs(all: &[How]) -> serde_json::Result<String> {
    let mut at = 0;
    let runs = all.chunk_by(|a, b| a == b).filter_map(|run| {
        let start = at;
        at += run.len();
        match run[0] {
            How::Narrow { parts } => Some((start, at, parts)),
            How::Wide => None,
        }
    });
    serde_json::to_string(&runs.collect::<Vec<_>>())
}

/// How each of `len` positions was computed, as [`narrow_runs`] has it; without such a list in wide
/// passes.
fn how_of(runs: &str, len: usize, most_positions: usize) -> Vec<How> {
    let runs: Vec<(usize, usize, u32)> = serde_json::from_str(runs).unwrap_or_default();
    let mut all = vec![How::Wide; len];
    for (start, end, parts) in runs {
        // There is no room for more parts than the longest session makes.
        let parts = parts.clamp(1, attention::splits(most_positions as u32));
        if let Some(run) = all.get_mut(start..end.min(len)) {
            run.fill(How::Narrow { parts });
        }
    }
    all
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
    check_adapters(engine.seat().registry(), &adapters)?;
    let mut session = engine.session();
    session.push_tokens(&tokens)?;
    let set: Vec<(&str, f32)> =
        adapters.iter().map(|saved| (saved.id.as_str(), saved.weight as f32)).collect();
    session.set_adapters(&Change { adapters: &set, ..Change::default() })?;
    let computed = field("computed").parse::<usize>().unwrap_or(0).min(tokens.len());
    session.how = how_of(field("narrow"), computed, engine.context());
    // A cache of another kind is computed anew rather than converted.
    if field("kv_dtype") == kv_kind(engine) {
        match engine.surviving(|| fill(&mut session, &file, kv_len, path)) {
            // It is computed anew as well.
            Err(Error::Background | Error::DeviceLost(_)) => {}
            filled => {
                filled?;
                session.mixed = mixed && kv_len > 0;
            }
        }
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
    // They stay until they are whole.
    let _kept = engine.recoveries.enter_first();
    session.forget_gone();
    let (config, page_bytes) = (&engine.base.config, page_bytes(&engine) as usize);
    let load = |name: String, count: usize| {
        let view = file.tensor(&name).map_err(|e| invalid(path, e))?;
        let expected = [count, page_bytes];
        if view.shape() != expected || view.dtype() != Dtype::U8 {
            let shape = view.shape();
            let reason = format!("tensor `{name}` has shape {shape:?}, not {expected:?}");
            return Err(invalid(path, reason));
        }
        Ok(view.data())
    };
    let mut blocks: Vec<&[u8]> = Vec::new();
    for i in 0..config.num_hidden_layers {
        let count = kept(config, i, kv_len).len();
        blocks.extend(load(format!("layers.{i}.keys"), count)?.chunks_exact(page_bytes));
        blocks.extend(load(format!("layers.{i}.values"), count)?.chunks_exact(page_bytes));
    }
    session.reserve(kv_len)?;
    engine.executor()?.slide(engine.gpu(), &mut session.pages, kv_len..kv_len, &[])?;
    write_pages(&engine, &Pages::new(&engine, &session.pages, kv_len), &blocks)?;
    session.kv_len = kv_len;
    session.own_work = false;
    Ok(())
}

/// Sends the blocks to their pages, by way of a buffer for each piece.
fn write_pages(engine: &Engine, pages: &Pages, blocks: &[&[u8]]) -> Result<()> {
    for piece in pages.pieces(engine.gpu()) {
        let staging = engine.gpu().upload("session", &blocks[piece.clone()].concat())?;
        let mut commands = Commands::new(engine.gpu())?;
        let executor = engine.executor()?;
        for (block, from) in piece.zip((0..).step_by(pages.page_bytes as usize)) {
            let (tensor, at) = pages.place(&executor, block);
            commands.copy(&staging, from, tensor, at, pages.page_bytes);
        }
        commands.submit();
    }
    engine.gpu().check()
}

fn page_bytes(engine: &Engine) -> u64 {
    PageShape::new(&engine.base.config, engine.kv_f16).bytes()
}

/// Type of the elements, and by which frequencies keys are turned where there are two.
fn kv_kind(engine: &Engine) -> &'static str {
    match (engine.kv_f16, engine.base.config.is_long(engine.context())) {
        (true, false) => "F16",
        (false, false) => "F32",
        (true, true) => "F16 long",
        (false, true) => "F32 long",
    }
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::InvalidFile { path: path.into(), reason: reason.to_string() }
}
