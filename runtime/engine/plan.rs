//! The memory of an engine, added up before any of it is taken: its own constructors, counted.

use super::residents::arena::{Arena, EIGHT};
use super::residents::packed::room;
use super::residents::registry::directory;
use super::working::{Spaces, Working, pass_rows};
use crate::adapter::Adapter;
use crate::base::ModelConfig;
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;
use crate::gpu::Memory;
use crate::gpu::commands::RING_BYTES;
use crate::gpu::memory::Share;
use crate::model::lora::LoraBuffers;
use crate::model::pages::{PAGE_LEN, Reach};
use crate::model::weights::Weights;

pub use crate::gpu::{Buffer, Caps, Class, MemoryPlan, Tally, human_bytes};

/// What an engine is to hold.
#[derive(Clone, Debug, Default)]
pub struct Serving<'a> {
    /// Most tokens of a session.
    pub context: usize,
    /// The KV cache is in f32 although there is f16.
    pub kv_f32: bool,
    /// Positions that its sessions hold together.
    pub kv_tokens: usize,
    /// Sessions that hold them, at most; as few as the context lets, where that is more. Counts in
    /// models with windows, of which each session has its own.
    pub sessions: usize,
    /// Loaded one after the other.
    pub adapters: &'a [Adapter],
    /// Bytes for them, as [`super::EngineOptions::adapter_budget`].
    pub adapter_budget: u64,
}

/// Adds up an engine on a device of `caps`; without `gguf` all but the weights.
///
/// Errors: as `Weights::allocate`; [`Error::AdapterBudget`]; [`Error::ContextFull`] for more
/// positions than there are page tables for.
pub fn tally(
    caps: &Caps,
    config: &ModelConfig,
    gguf: Option<&Gguf>,
    serving: &Serving<'_>,
) -> Result<Tally> {
    let tally = Tally::new(caps);
    let weights = gguf.map(|gguf| Weights::allocate(&tally, gguf, config)).transpose()?;
    if !caps.immediates {
        tally.add(Buffer::of(Class::Activations, "params ring", &[RING_BYTES], 1));
    }
    let spaces = Spaces::new(caps, serving.context, serving.kv_f32);
    let mut working = Working::new(&tally, config, &spaces)?;
    let adapters = load(&tally, config, &spaces, serving)?;
    let pages = serving.kv_tokens.div_ceil(PAGE_LEN);
    let in_windows = config.window().map_or(0, |window| {
        // Of each session a window and the rows of a pass, both beginning and ending in a page.
        let each = window.div_ceil(PAGE_LEN) + pass_rows(caps).div_ceil(PAGE_LEN) + 2;
        let sessions = serving.sessions.max(serving.kv_tokens.div_ceil(serving.context.max(1)));
        pages.min(each.saturating_mul(sessions))
    });
    for (reach, pages) in [(Reach::All, pages), (Reach::Window, in_windows)] {
        while working.cache.pages(reach) < pages {
            let larger = working.cache.larger(&tally, reach, working.cache.pages(reach) + 1)?;
            working.cache.replace(larger);
        }
    }
    // What is there now stays in the clone.
    let counted = tally.clone();
    drop((weights, working, adapters));
    Ok(counted)
}

/// Adapters on the device, and what their kernels work on once there is one.
type Loaded = (Arena<Share>, Vec<LoraBuffers<Share>>);

/// Loads the adapters one after the other.
fn load(
    tally: &Tally,
    config: &ModelConfig,
    spaces: &Spaces,
    serving: &Serving<'_>,
) -> Result<Loaded> {
    let base = config.base_shape();
    let directory_bytes = u64::from(directory(&base, spaces.most_rows()).words()) * 4;
    let mut arena = Arena::new(tally.caps(), directory_bytes, serving.adapter_budget);
    let (mut blocks, mut bound) = (Vec::new(), Vec::new());
    for (i, adapter) in serving.adapters.iter().enumerate() {
        let room = room(adapter, &base);
        if bound.is_empty() {
            for space in [&spaces.steps, &spaces.prompts] {
                bound.push(LoraBuffers::new(tally, config, space.rows)?);
            }
        }
        let block = loop {
            if let Some(block) = arena.allocate(room) {
                break block;
            }
            if arena.can_make_room(room) {
                let mut all: Vec<_> = blocks.iter_mut().collect();
                arena.rebuild(tally, room, &mut all, &mut |_| {})?;
            } else if blocks.is_empty() {
                return Err(Error::AdapterBudget {
                    id: format!("number {}", i + 1),
                    needed_bytes: EIGHT * (u64::from(room.a) + u64::from(room.b)),
                    budget_bytes: arena.budget(),
                });
            } else {
                // The longest unused makes room.
                arena.free(blocks.remove(0));
            }
        };
        blocks.push(block);
    }
    Ok((arena, bound))
}
