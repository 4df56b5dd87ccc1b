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
use crate::kernels::attention;
use crate::model::kv_cache::{PAGE_LEN, PageRef, PageShape};

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

/// The pages of a session in the cache, as its file has them: tensor after tensor (keys, then
/// values, of each layer), each page after page.
struct Pages<'a> {
    pages: &'a [PageRef],
    page_bytes: u64,
    tensors: usize,
}

impl<'a> Pages<'a> {
    fn new(engine: &Engine, pages: &'a [PageRef]) -> Self {
        let config = &engine.base.config;
        let page_bytes = PageShape::new(config, engine.kv_f16).bytes();
        Self { pages, page_bytes, tensors: 2 * config.num_hidden_layers }
    }

    /// Pages of all tensors.
    fn blocks(&self) -> Range<usize> {
        0..self.pages.len() * self.tensors
    }

    /// Blocks to be copied together, as many as `gpu` has a buffer for.
    fn pieces(&self, gpu: &Gpu) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = PIECE_BYTES.min(gpu.limits().max_buffer_size);
        let (step, end) = ((most / self.page_bytes).max(1) as usize, self.blocks().end);
        (0..end).step_by(step).map(move |start| start..end.min(start + step))
    }

    /// Where a block is in the cache.
    fn place<'e>(&self, executor: &'e Executor, block: usize) -> (&'e Tensor, u64) {
        let (tensor, page) = (block / self.pages.len(), &self.pages[block % self.pages.len()]);
        let (keys, values) = &executor.cache.layers[tensor / 2];
        (if tensor % 2 == 0 { keys } else { values }, u64::from(page.number()) * self.page_bytes)
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
        ("kv_dtype".to_string(), kv_dtype(engine).to_string()),
        ("kv_len".to_string(), kv_len.to_string()),
        ("adapters".to_string(), adapters),
        ("computed".to_string(), session.how.len().to_string()),
        ("narrow".to_string(), narrow_runs(&session.how).map_err(|e| invalid(path, e))?),
        ("mixed".to_string(), (session.mixed && kv_len > 0).to_string()),
    ]);
    let shape = vec![pages.pages.len(), pages.page_bytes as usize];
    let mut tensors = vec![("tokens".to_string(), Dtype::U32, vec![session.tokens.len()])];
    for i in 0..pages.tensors / 2 {
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
struct Computed<'a> {
    kv_len: usize,
    pages: Pages<'a>,
    bytes: Vec<u8>,
}

impl Computed<'_> {
    fn nothing(engine: &Engine) -> Self {
        Self { kv_len: 0, pages: Pages::new(engine, &[]), bytes: Vec::new() }
    }
}

/// Keys and values of a session, if they are still there.
fn computed(session: &Session) -> Result<Computed<'_>> {
    let engine = &session.engine;
    // They stay until they are read.
    let _kept = engine.recoveries.enter_first();
    let (kv_len, used) = (session.kv_len, &session.pages[..session.kv_len.div_ceil(PAGE_LEN)]);
    if used.iter().any(PageRef::is_gone) {
        return Ok(Computed::nothing(engine));
    }
    let pages = Pages::new(engine, used);
    let bytes = read_pages(engine, &pages)?;
    Ok(Computed { kv_len, pages, bytes })
}

/// The blocks, one after the other, by way of one staging buffer. Nobody changes them meanwhile:
/// the session is borrowed, and what it shares is not written to.
fn read_pages(engine: &Engine, pages: &Pages<'_>) -> Result<Vec<u8>> {
    let page_bytes = pages.page_bytes as usize;
    let mut bytes = vec![0; pages.blocks().len() * page_bytes];
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
    // A cache in another element type is computed anew rather than converted.
    if field("kv_dtype") == kv_dtype(engine) {
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
    let used = kv_len.div_ceil(PAGE_LEN);
    // They stay until they are whole.
    let _kept = engine.recoveries.enter_first();
    session.forget_gone();
    let Pages { page_bytes, tensors, .. } = Pages::new(&engine, &[]);
    let (layers, page_bytes) = (tensors / 2, page_bytes as usize);
    let load = |name: String| {
        let view = file.tensor(&name).map_err(|e| invalid(path, e))?;
        if view.shape() != [used, page_bytes] || view.dtype() != Dtype::U8 {
            return Err(invalid(
                path,
                format!("tensor `{name}` has shape {:?}, not [{used}, {page_bytes}]", view.shape()),
            ));
        }
        Ok(view.data())
    };
    let mut tensors = Vec::with_capacity(2 * layers);
    for i in 0..layers {
        tensors.push(load(format!("layers.{i}.keys"))?);
        tensors.push(load(format!("layers.{i}.values"))?);
    }
    session.reserve(kv_len)?;
    write_pages(&engine, &session.pages[..used], &tensors)?;
    session.kv_len = kv_len;
    session.own_work = false;
    Ok(())
}

/// Sends what each tensor has to the pages, by way of a buffer for each piece.
fn write_pages(engine: &Engine, pages: &[PageRef], tensors: &[&[u8]]) -> Result<()> {
    let pages = Pages::new(engine, pages);
    let page_bytes = pages.page_bytes as usize;
    for piece in pages.pieces(engine.gpu()) {
        let mut bytes = Vec::with_capacity(piece.len() * page_bytes);
        for block in piece.clone() {
            let (tensor, page) = (block / pages.pages.len(), block % pages.pages.len());
            bytes.extend_from_slice(&tensors[tensor][page * page_bytes..][..page_bytes]);
        }
        let staging = engine.gpu().upload("session", &bytes)?;
        let mut commands = Commands::new(engine.gpu())?;
        let executor = engine.executor()?;
        for (block, from) in piece.zip((0..).step_by(page_bytes)) {
            let (tensor, at) = pages.place(&executor, block);
            commands.copy(&staging, from, tensor, at, pages.page_bytes);
        }
        commands.submit();
    }
    engine.gpu().check()
}

fn kv_dtype(engine: &Engine) -> &'static str {
    if engine.kv_f16 { "F16" } else { "F32" }
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::InvalidFile { path: path.into(), reason: reason.to_string() }
}
