//! The device's working state: activations, cache, adapters, sampler. Sessions take turns, of one
//! submission each.
//!
//! Passes of many rows and those of few have activations of their own, a [`Space`], so that neither
//! waits for the other to end. A space serves one pass at a time; whoever has claimed it writes its
//! rows, tables and settings first. What else a pass needs (cache, adapters, directory) may be
//! changed by others between two of its turns: [`Executor::resume`].

mod room;

use std::sync::Arc;

use crate::base::Rotary;
use crate::error::{Error, Result};
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::sample::{self, Sampler};
use crate::kernels::{rope, sample_mask};
use crate::model::activations::{LOGIT_ROWS, Limits};
use crate::model::decoder::{Decoder, Part, Pass};
use crate::model::kv_cache::KvCache;
use crate::model::pages::{Held, PAGE_LEN, PageKey, PagePool, Reach};
use crate::model::site::LoraPass;
use crate::model::weights::Weights;
use crate::progress::Loading;

use super::inputs::Inputs;
use super::lookup;
use super::pass::How;
use super::residents::{Registry, SetId};
use super::working::{Sampling, Spaces, Working};
use super::{Base, Setup};

/// Where a pass has its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Of decode steps and of a few rows of a prompt.
    Steps,
    /// Of many rows of a prompt.
    Prompts,
}

/// Most rows of a prompt that go through [`Space::Steps`] at a time.
pub(crate) fn few_rows(caps: &Caps) -> usize {
    if caps.software { 16 } else { LOGIT_ROWS }
}

/// The model, bound to the activations of a space.
struct Workspace {
    decoder: Decoder,
    /// The rows' adapters.
    row_sets: Vec<SetId>,
    /// What the rows need of them.
    lora: Option<LoraPass>,
    /// How often the adapters had moved then.
    moves: Option<u64>,
}

pub(crate) struct Executor {
    pub(crate) cache: KvCache,
    /// By [`Reach`].
    pools: [PagePool; 2],
    /// Of layers that have one.
    window: Option<usize>,
    pub(crate) registry: Registry,
    weights: Arc<Weights>,
    steps: Workspace,
    prompts: Workspace,
    /// Whose rows the directory names.
    directory_of: Option<Space>,
    /// Whose decode state is in [`Space::Steps`]; 0 is nobody's.
    pub(crate) owner: u64,
    vocab: u32,
    samplers: Tensor,
    seen: Tensor,
    biases: Tensor,
    masks: Tensor,
    ring: Tensor,
    ops: SampleOps,
    /// Kept alive by the bind groups too; listed so that its memory is counted.
    _scratch: [Tensor; 4],
}

struct SampleOps {
    adjust: Op,
    mask: Op,
    threshold: Op,
    partial: Op,
    last: Op,
}

/// Rows of a prompt.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) tokens: &'a [u32],
    /// Of the first one.
    pub(crate) position: usize,
    /// Of its sequence's pages, as far as they may be published.
    pub(crate) keys: &'a [Option<PageKey>],
    /// Its adapters.
    pub(crate) set: SetId,
    /// As it was computed before; `None`: as the number of rows has it.
    pub(crate) how: Option<How>,
    /// Gets what goes into each group of linears.
    pub(crate) inputs: Option<&'a Inputs>,
}

/// How a decode step chooses its tokens, and where they go.
pub(crate) struct Choice<'a> {
    /// Of the rows.
    pub(crate) samplers: &'a [Sampler],
    /// Some row has a grammar: all rows have masks.
    pub(crate) masked: bool,
    /// Of the ring.
    pub(crate) slot: usize,
    /// Gets a copy.
    pub(crate) readback: &'a Tensor,
}

/// One sequence of a decode batch, as the host knows it.
pub(crate) struct Row<'a> {
    /// The token to feed.
    pub(crate) token: u32,
    /// Its position.
    pub(crate) position: u32,
    pub(crate) pages: &'a Held,
    pub(crate) sampler: Sampler,
    pub(crate) biases: &'a [(u32, f32)],
    /// The context, for the repetition penalty.
    pub(crate) context: &'a [u32],
    /// Its adapters.
    pub(crate) set: SetId,
    /// Each of its steps gets a mask.
    pub(crate) is_masked: bool,
}

impl Executor {
    /// Compiles what works on `weights`, of which `loading` hears, and makes room for it.
    ///
    /// Errors: [`Error::OutOfMemory`]; [`Error::Cancelled`]; as [`Gpu::kernel`] and [`Gpu::check`].
    pub(crate) fn load(
        gpu: &Gpu,
        base: &Base,
        weights: Weights,
        setup: &Setup,
        loading: &mut Loading<'_>,
    ) -> Result<Self> {
        let spaces = Spaces::new(gpu.caps(), setup.context, setup.kv_f32);
        let specs = Self::specs(gpu.caps(), base, &weights, &spaces.steps);
        gpu.compile_all(specs, loading)?;
        // What the weights were staged in is given back first, so that it leaves no gaps.
        gpu.wait(None)?;
        let executor = Self::new(gpu, base, weights, &spaces, setup.adapter_budget)?;
        gpu.check()?;
        Ok(executor)
    }

    fn new(
        gpu: &Gpu,
        base: &Base,
        weights: Weights,
        spaces: &Spaces,
        adapter_budget: u64,
    ) -> Result<Self> {
        let (config, vocab) = (&base.config, base.config.vocab_size as u32);
        let Working { cache, steps, prompts, sampling } = Working::new(gpu, config, spaces)?;
        let Sampling { samplers, seen, biases, masks, tallies, found, thresholds, partials, ring } =
            sampling;
        for (rotations, rotary) in
            steps.rotations.iter().zip(config.rotaries(spaces.steps.positions))
        {
            let Rotary { frequencies, scale } = rotary;
            gpu.write(rotations, 0, &rope::rotations(&frequencies, scale, spaces.steps.positions));
        }
        let workspace = |activations, limits| {
            let decoder = Decoder::new(gpu, config, &weights, &cache, activations, limits)?;
            Ok::<_, Error>(Workspace { decoder, row_sets: Vec::new(), lora: None, moves: None })
        };
        let steps = workspace(steps, &spaces.steps)?;
        let prompts = workspace(prompts, &spaces.prompts)?;
        let a = &steps.decoder.activations;
        let ops = SampleOps {
            adjust: gpu.op(&sample::adjust_spec(), &[&samplers, &seen, &biases, &a.logits])?,
            mask: gpu.op(&sample_mask::spec(), &[&masks, &a.logits])?,
            threshold: gpu.op(
                &sample::threshold_spec(),
                &[&samplers, &a.logits, &tallies, &found, &thresholds],
            )?,
            partial: gpu.op(
                &sample::partial_spec(),
                &[&samplers, &a.rows, &a.logits, &thresholds, &partials],
            )?,
            last: gpu
                .op(&sample::final_spec(), &[&partials, &a.token_ids, &a.rows, &seen, &ring])?,
        };
        let pools = Reach::EACH.map(|reach| PagePool::of(cache.pages(reach)));
        let registry = Registry::new(gpu, base.adapter_shape(), spaces.most_rows(), adapter_budget);
        Ok(Self {
            cache,
            pools,
            window: config.window(),
            registry,
            weights: Arc::new(weights),
            steps,
            prompts,
            directory_of: None,
            owner: 0,
            vocab,
            samplers,
            seen,
            biases,
            masks,
            ring,
            ops,
            _scratch: [tallies, found, thresholds, partials],
        })
    }

    /// What [`Executor::new`], the first token and the first draft need compiled.
    fn specs(caps: &Caps, base: &Base, weights: &Weights, limits: &Limits) -> Vec<KernelSpec> {
        let sampling = [
            sample::partial_spec(),
            sample::final_spec(),
            sample::adjust_spec(),
            sample_mask::spec(),
            sample::threshold_spec(),
        ];
        let rows: Vec<u32> = std::iter::once(1).chain(lookup::rows(caps)).collect();
        // The slowest first, so that no one waits for it in the end.
        let specs = Decoder::specs(caps, &base.config, weights, limits, &rows);
        specs.into_iter().chain(sampling).collect()
    }

    /// On the device.
    pub(crate) fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Makes what adapted kernels work on, before anything of an adapter is staged.
    pub(crate) fn make_u(&mut self, gpu: &Gpu) -> Result<()> {
        [&mut self.steps, &mut self.prompts]
            .into_iter()
            .try_for_each(|workspace| workspace.decoder.make_u(gpu))
    }

    /// Binds the adapted kernels to the registry's buffers, wherever they are now. Nothing happens
    /// if they are: else an earlier attempt has failed, and rows with adapters must not run
    /// without.
    pub(crate) fn bind_adapters(&mut self, gpu: &Gpu) -> Result<()> {
        for workspace in [&mut self.steps, &mut self.prompts] {
            let (decoder, factors) = (&mut workspace.decoder, self.registry.factors());
            decoder.bind_adapters(gpu, &self.weights, &self.cache, factors)?;
        }
        Ok(())
    }

    /// What binding the first adapter compiles; nothing once there was one.
    pub(crate) fn adapted_specs(&self, caps: &Caps) -> Vec<KernelSpec> {
        match self.registry.factors() {
            Some(_) => Vec::new(),
            None => self.steps.decoder.adapted_specs(caps, self.registry.directory()),
        }
    }

    fn workspace(&self, space: Space) -> &Workspace {
        match space {
            Space::Steps => &self.steps,
            Space::Prompts => &self.prompts,
        }
    }

    fn workspace_mut(&mut self, space: Space) -> &mut Workspace {
        match space {
            Space::Steps => &mut self.steps,
            Space::Prompts => &mut self.prompts,
        }
    }

    /// Puts rows of a prompt in their space.
    pub(crate) fn load_chunk(&mut self, gpu: &Gpu, space: Space, chunk: &Chunk<'_>, held: &Held) {
        if space == Space::Steps {
            self.owner = 0;
        }
        let first = chunk.position as u32;
        let rows: Vec<[u32; 2]> =
            (first..).take(chunk.tokens.len()).map(|position| [0, position]).collect();
        let a = &self.workspace(space).decoder.activations;
        gpu.write(&a.token_ids, 0, chunk.tokens);
        gpu.write(&a.rows, 0, &rows);
        a.write_pages(gpu, 0, held);
        self.set_rows(space, std::iter::repeat_n(chunk.set, rows.len()));
    }

    /// Gives the rows of a space their adapters.
    fn set_rows(&mut self, space: Space, sets: impl Iterator<Item = SetId>) {
        let workspace = self.workspace_mut(space);
        workspace.row_sets.clear();
        workspace.row_sets.extend(sets);
        self.adapters_changed(space);
    }

    /// What the rows need of their adapters, where these are now.
    fn adapters_changed(&mut self, space: Space) {
        let moves = self.registry.factors().map(|factors| factors.moves);
        let lora = self.registry.pass(self.workspace(space).row_sets.iter().copied());
        let workspace = self.workspace_mut(space);
        (workspace.lora, workspace.moves) = (lora, moves);
        if self.directory_of == Some(space) {
            self.directory_of = None;
        }
    }

    /// Comes first in each turn of a pass: binds what others have moved since the last one, and
    /// takes the directory's rows back.
    ///
    /// Errors: as [`Executor::bind_adapters`].
    pub(crate) fn resume(&mut self, gpu: &Gpu, space: Space) -> Result<()> {
        let moves = self.registry.factors().map(|factors| factors.moves);
        if self.workspace(space).lora.is_none() {
            return Ok(());
        }
        if self.workspace(space).moves != moves {
            self.directory_of = None;
            self.adapters_changed(space);
        }
        self.bind_adapters(gpu)?;
        if self.directory_of != Some(space) {
            self.registry.write_rows(gpu, 0, &self.workspace(space).row_sets);
            self.directory_of = Some(space);
        }
        Ok(())
    }

    /// The parts of a pass.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        self.steps.decoder.parts()
    }

    /// Records a part of a pass.
    ///
    /// Errors: as [`Decoder::record`].
    pub(crate) fn record(
        &self,
        commands: &mut Commands<'_>,
        part: Part,
        pass: &super::pass::Pass<'_>,
    ) -> Result<()> {
        let Workspace { decoder, lora, .. } = self.workspace(pass.space);
        let (rows, runs, wide) = (pass.rows(), pass.runs, pass.how == How::Wide);
        decoder.record(commands, part, Pass { rows, runs, wide, lora: lora.as_ref() })
    }

    /// Records a copy of what the product of a wide pass's part has read.
    pub(crate) fn copy_input(
        &self,
        commands: &mut Commands<'_>,
        part: Part,
        pass: &super::pass::Pass<'_>,
        inputs: &Inputs,
    ) {
        let Part::Group(layer, site) = part else { return };
        let (at, bytes) = inputs.place(layer, site, pass.rows());
        let input = self.workspace(pass.space).decoder.input_of(site);
        commands.copy(input, 0, &inputs.readback, at, bytes);
    }

    /// Records a copy of `rows` rows of logits to row `to_row` of `readback`.
    pub(crate) fn copy_logits(
        &self,
        commands: &mut Commands<'_>,
        space: Space,
        rows: u32,
        readback: &Tensor,
        to_row: u32,
    ) {
        let [at, bytes] = [to_row, rows].map(|rows| u64::from(rows) * u64::from(self.vocab) * 4);
        commands.copy(&self.workspace(space).decoder.activations.logits, 0, readback, at, bytes);
    }

    /// Records the last norm of `rows` rows, and a copy of what comes out to `readback`.
    pub(crate) fn copy_states(
        &self,
        commands: &mut Commands<'_>,
        space: Space,
        rows: u32,
        readback: &Tensor,
    ) {
        let decoder = &self.workspace(space).decoder;
        decoder.record_states(commands, rows);
        let states = &decoder.activations.normed;
        commands.copy(states, 0, readback, 0, u64::from(rows) * decoder.state_bytes());
    }

    /// Puts a decode batch in its space for `owner`.
    pub(crate) fn load_rows(&mut self, gpu: &Gpu, owner: u64, batch: &[Row<'_>]) {
        let (a, max_pages) = (&self.steps.decoder.activations, self.steps.decoder.max_pages());
        let seen_words = sample::seen_words(self.vocab) as usize;
        let mut biases: Vec<(u32, f32)> = Vec::new();
        for (m, row) in batch.iter().enumerate() {
            let mut sampler = row.sampler;
            sampler.bias_start = biases.len() as u32;
            sampler.bias_count = row.biases.len() as u32;
            biases.extend_from_slice(row.biases);
            gpu.write(&a.token_ids, m as u64 * 4, &[row.token]);
            gpu.write(&a.rows, m as u64 * 8, &[m as u32, row.position]);
            a.write_pages(gpu, m * max_pages, row.pages);
            gpu.write(&self.samplers, (m * size_of::<Sampler>()) as u64, &[sampler]);
            let mut seen = vec![0_u32; seen_words];
            for &token in row.context {
                seen[token as usize / 32] |= 1 << (token % 32);
            }
            gpu.write(&self.seen, (m * seen_words * 4) as u64, &seen);
        }
        let flat: Vec<u32> =
            biases.iter().flat_map(|(token, bias)| [*token, bias.to_bits()]).collect();
        gpu.write(&self.biases, 0, &flat);
        if batch.iter().any(|row| row.is_masked) {
            let anything = vec![u32::MAX; sample_mask::mask_words(self.vocab) as usize];
            for m in (0..batch.len()).filter(|&m| !batch[m].is_masked) {
                self.write_mask(gpu, m, &anything);
            }
        }
        self.set_rows(Space::Steps, batch.iter().map(|row| row.set));
        self.owner = owner;
    }

    /// The tokens that row `m` of the loaded batch may go on with in the next step, a bit each.
    pub(crate) fn write_mask(&self, gpu: &Gpu, m: usize, mask: &[u32]) {
        let words = sample_mask::mask_words(self.vocab) as usize;
        gpu.write(&self.masks, (m * words * 4) as u64, &mask[..words]);
    }

    /// Gives row `m` of the loaded batch other adapters from the next step on.
    pub(crate) fn set_row_adapters(&mut self, m: usize, set: SetId) {
        self.steps.row_sets[m] = set;
        self.adapters_changed(Space::Steps);
    }

    /// Gives row `m`, whose first `kv_len` positions are there, the page that follows its last one.
    ///
    /// Errors: as [`Executor::allocate_page`].
    pub(crate) fn next_page(
        &mut self,
        gpu: &Gpu,
        m: usize,
        held: &mut Held,
        kv_len: usize,
    ) -> Result<()> {
        let end = (held.all.len() + 1) * PAGE_LEN;
        // First, so that a window never has a page more.
        let page = self.allocate_page(gpu, Reach::All)?;
        if let Err(e) = self.slide(gpu, held, kv_len..end, &[]) {
            self.pool(Reach::All).release(&page);
            return Err(e);
        }
        held.all.push(page);
        let decoder = &self.steps.decoder;
        decoder.activations.write_pages(gpu, m * decoder.max_pages(), held);
        Ok(())
    }

    /// Records the choice of a token for each of `rows` rows of logits.
    pub(crate) fn record_choice(&self, commands: &mut Commands<'_>, rows: u32, choice: Choice<'_>) {
        let Choice { samplers, masked, slot, readback } = choice;
        if samplers.iter().any(Sampler::is_adjusted) {
            sample::record_adjust(commands, &self.ops.adjust, self.vocab, rows);
        }
        if masked {
            sample_mask::record(commands, &self.ops.mask, self.vocab, rows);
        }
        if samplers.iter().any(Sampler::is_restricted) {
            sample::record_threshold(commands, &self.ops.threshold, self.vocab, rows);
        }
        sample::record_partial(commands, &self.ops.partial, self.vocab, rows);
        let offset = slot * LOGIT_ROWS;
        sample::record_final(commands, &self.ops.last, self.vocab, rows, offset as u32);
        commands.copy(&self.ring, offset as u64 * 4, readback, 0, u64::from(rows) * 4);
    }
}
