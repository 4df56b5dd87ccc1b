//! The device's working state: activations, cache, sampler. One pass at a time; sessions take turns
//! under a lock.
//!
//! Nothing here outlives a turn but the KV pages: whoever takes a turn writes its rows, tables and
//! settings first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::sample::{self, Sampler};
use crate::model::activations::{LOGIT_ROWS, Limits};
use crate::model::attend::Run;
use crate::model::kv_cache::{KvCache, PAGE_LEN, PagePool};
use crate::model::llama::Llama;
use crate::model::site::LoraPass;
use crate::model::weights::Weights;

use super::Base;
use super::residents::{Registry, SetId};
use super::working::{Sampling, Working};

pub(crate) struct Executor {
    pub(crate) llama: Llama,
    pub(crate) cache: KvCache,
    pub(crate) pool: PagePool,
    pub(crate) registry: Registry,
    weights: Arc<Weights>,
    /// Sets of the loaded batch's rows.
    row_sets: Vec<SetId>,
    /// What the rows of the last pass need of their adapters.
    lora: Option<LoraPass>,
    /// Whose decode state is on the device; 0 is nobody's.
    pub(crate) owner: u64,
    /// Most rows of a pass.
    chunk_rows: usize,
    vocab: u32,
    samplers: Tensor,
    seen: Tensor,
    biases: Tensor,
    ring: Tensor,
    ops: SampleOps,
    /// Kept alive by the bind groups too; listed so that its memory is counted.
    _scratch: [Tensor; 2],
}

struct SampleOps {
    adjust: Op,
    threshold: Op,
    partial: Op,
    last: Op,
}

/// One sequence of a decode batch, as the host knows it.
pub(crate) struct Row<'a> {
    /// The token to feed.
    pub(crate) token: u32,
    /// Its position.
    pub(crate) position: u32,
    pub(crate) pages: &'a [u32],
    pub(crate) sampler: Sampler,
    pub(crate) biases: &'a [(u32, f32)],
    /// The context, for the repetition penalty.
    pub(crate) context: &'a [u32],
    /// Its adapters.
    pub(crate) set: SetId,
}

impl Executor {
    pub(crate) fn new(
        gpu: &Gpu,
        base: &Base,
        limits: &Limits,
        adapter_budget: u64,
    ) -> Result<Self> {
        let (config, vocab) = (&base.config, base.config.vocab_size as u32);
        let Working { cache, activations, sampling } = Working::new(gpu, config, limits)?;
        let Sampling { samplers, seen, biases, thresholds, partials, ring } = sampling;
        let llama = Llama::new(gpu, config, &base.weights, &cache, activations, limits)?;
        let a = &llama.activations;
        let ops = SampleOps {
            adjust: gpu.op(&sample::adjust_spec(), &[&samplers, &seen, &biases, &a.logits])?,
            threshold: gpu.op(&sample::threshold_spec(), &[&samplers, &a.logits, &thresholds])?,
            partial: gpu.op(
                &sample::partial_spec(),
                &[&samplers, &a.rows, &a.logits, &thresholds, &partials],
            )?,
            last: gpu
                .op(&sample::final_spec(), &[&partials, &a.token_ids, &a.rows, &seen, &ring])?,
        };
        let mut pool = PagePool::default();
        pool.grow(cache.pages());
        let registry =
            Registry::new(gpu, base.adapter_shape(), limits.rows.max(LOGIT_ROWS), adapter_budget);
        Ok(Self {
            llama,
            cache,
            pool,
            registry,
            weights: Arc::clone(&base.weights),
            row_sets: Vec::with_capacity(LOGIT_ROWS),
            lora: None,
            owner: 0,
            chunk_rows: limits.rows,
            vocab,
            samplers,
            seen,
            biases,
            ring,
            ops,
            _scratch: [thresholds, partials],
        })
    }

    /// What [`Executor::new`] and the first token need compiled.
    pub(crate) fn specs(caps: &Caps, base: &Base, kv_f16: bool) -> Vec<KernelSpec> {
        let sampling = [
            sample::partial_spec(),
            sample::final_spec(),
            sample::adjust_spec(),
            sample::threshold_spec(),
        ];
        // The slowest first, so that no one waits for it in the end.
        Llama::specs(caps, &base.config, &base.weights, kv_f16)
            .into_iter()
            .chain(sampling)
            .collect()
    }

    /// A page for one user; the cache grows when all are taken.
    pub(crate) fn allocate_page(&mut self, gpu: &Gpu) -> Result<u32> {
        if self.pool.available() == 0 {
            self.cache.grow(gpu, self.pool.capacity() + 1)?;
            self.llama.rebind(gpu, &self.cache)?;
            self.pool.grow(self.cache.pages());
            self.bind_adapters(gpu)?;
        }
        let capacity = self.pool.capacity() * PAGE_LEN;
        self.pool.allocate().ok_or(Error::ContextFull { needed: capacity + PAGE_LEN, capacity })
    }

    /// Binds the adapted kernels to the registry's buffers, wherever they are now. Nothing happens
    /// if they are: else an earlier attempt has failed, and rows with adapters must not run
    /// without.
    pub(crate) fn bind_adapters(&mut self, gpu: &Gpu) -> Result<()> {
        self.llama.bind_adapters(gpu, &self.weights, &self.cache, self.registry.factors())
    }

    /// After anything that may have moved the registry's buffers: whoever decodes has to load its
    /// rows anew then.
    pub(crate) fn adapters_moved(&mut self, gpu: &Gpu) -> Result<()> {
        if self.llama.adapters_are_stale(self.registry.factors()) {
            self.owner = 0;
            self.bind_adapters(gpu)?;
        }
        Ok(())
    }

    /// Makes `page` its user's alone, copying it if others use it or may come to.
    pub(crate) fn own_page(&mut self, gpu: &Gpu, page: u32) -> Result<u32> {
        if !self.pool.is_shared(page) {
            return Ok(page);
        }
        let copy = self.allocate_page(gpu)?;
        let mut commands = Commands::new(gpu)?;
        let copied = self.cache.copy_page(&mut commands, page, copy);
        commands.submit();
        self.pool.release(if copied.is_ok() { page } else { copy });
        copied.map(|()| copy)
    }

    /// Runs `tokens` through the model from `position` on; `each` is called after each chunk of
    /// rows with the first row's index among `tokens` and the rows, while their activations are
    /// there.
    pub(crate) fn prefill(
        &mut self,
        gpu: &Gpu,
        (tokens, position): (&[u32], usize),
        (pages, set): (&[u32], SetId),
        cancel: &AtomicBool,
        mut each: impl FnMut(&mut Self, &Gpu, usize, u32) -> Result<()>,
    ) -> Result<()> {
        self.owner = 0;
        gpu.write(&self.llama.activations.pages, 0, pages);
        self.lora = self.registry.pass(std::iter::once(set));
        if self.lora.is_some() {
            self.bind_adapters(gpu)?;
            self.registry.write_rows(gpu, 0, &vec![set; tokens.len().min(self.chunk_rows)]);
        }
        for (chunk, first) in tokens.chunks(self.chunk_rows).zip((0..).step_by(self.chunk_rows)) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let start = (position + first) as u32;
            let count = chunk.len() as u32;
            let rows: Vec<[u32; 2]> = (0..count).map(|i| [0, start + i]).collect();
            gpu.write(&self.llama.activations.token_ids, 0, chunk);
            gpu.write(&self.llama.activations.rows, 0, &rows);
            let mut commands = Commands::new(gpu)?;
            commands.cancel_on(cancel);
            let run = Run { row0: 0, count, positions: start + count };
            let recorded =
                self.llama.forward(gpu, &mut commands, (count, &[run]), self.lora.as_ref());
            let index = commands.submit();
            recorded?;
            each(self, gpu, first, count)?;
            // Two chunks ahead of the device at most, and faults surface here.
            if gpu.caps().software {
                gpu.wait(Some(index))?;
            }
        }
        gpu.check()
    }

    /// Logits `[rows, V]` of `rows` rows from `x_row` of the last pass.
    pub(crate) fn read_logits(&self, gpu: &Gpu, x_row: u32, rows: u32) -> Result<Vec<f32>> {
        let mut commands = Commands::new(gpu)?;
        self.llama.logits(gpu, &mut commands, (x_row, rows), self.lora.as_ref())?;
        commands.submit();
        gpu.read(&self.llama.activations.logits, 0, (rows * self.vocab) as usize)
    }

    /// Puts a decode batch on the device for `owner`.
    ///
    /// Errors: as [`Executor::bind_adapters`].
    pub(crate) fn load_rows(&mut self, gpu: &Gpu, owner: u64, batch: &[Row<'_>]) -> Result<()> {
        let a = &self.llama.activations;
        let seen_words = sample::seen_words(self.vocab) as usize;
        let mut biases: Vec<(u32, f32)> = Vec::new();
        for (m, row) in batch.iter().enumerate() {
            let mut sampler = row.sampler;
            sampler.bias_start = biases.len() as u32;
            sampler.bias_count = row.biases.len() as u32;
            biases.extend_from_slice(row.biases);
            gpu.write(&a.token_ids, m as u64 * 4, &[row.token]);
            gpu.write(&a.rows, m as u64 * 8, &[m as u32, row.position]);
            gpu.write(&a.pages, (m * self.llama.max_pages()) as u64 * 4, row.pages);
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
        self.row_sets.clear();
        self.row_sets.extend(batch.iter().map(|row| row.set));
        self.use_row_sets(gpu)?;
        self.owner = owner;
        Ok(())
    }

    /// Gives row `m` of the loaded batch other adapters from the next step on.
    pub(crate) fn set_row_adapters(&mut self, gpu: &Gpu, m: usize, set: SetId) -> Result<()> {
        self.row_sets[m] = set;
        self.use_row_sets(gpu)
    }

    fn use_row_sets(&mut self, gpu: &Gpu) -> Result<()> {
        self.lora = self.registry.pass(self.row_sets.iter().copied());
        if self.lora.is_some() {
            self.bind_adapters(gpu)?;
            self.registry.write_rows(gpu, 0, &self.row_sets);
        }
        Ok(())
    }

    /// Tells the device that row `m`'s page number `index` is `page`.
    pub(crate) fn set_page(&self, gpu: &Gpu, m: usize, index: usize, page: u32) {
        gpu.write(
            &self.llama.activations.pages,
            (m * self.llama.max_pages() + index) as u64 * 4,
            &[page],
        );
    }

    /// Submits one decode step of the loaded batch; its tokens are copied to `readback`.
    /// `positions`: what the rows see.
    pub(crate) fn step(
        &mut self,
        gpu: &Gpu,
        runs: &[Run],
        samplers: impl Iterator<Item = Sampler> + Clone,
        slot: usize,
        readback: &Tensor,
    ) -> Result<wgpu::SubmissionIndex> {
        let rows = runs.len() as u32;
        let mut commands = Commands::new(gpu)?;
        self.llama.forward(gpu, &mut commands, (rows, runs), self.lora.as_ref())?;
        self.llama.logits(gpu, &mut commands, (0, rows), self.lora.as_ref())?;
        if samplers.clone().any(|s| s.is_adjusted()) {
            sample::record_adjust(&mut commands, &self.ops.adjust, self.vocab, rows);
        }
        if samplers.clone().any(|s| s.is_restricted()) {
            sample::record_threshold(&mut commands, &self.ops.threshold, self.vocab, rows);
        }
        sample::record_partial(&mut commands, &self.ops.partial, self.vocab, rows);
        let offset = slot * LOGIT_ROWS;
        sample::record_final(&mut commands, &self.ops.last, self.vocab, rows, offset as u32);
        commands.copy(&self.ring, offset as u64 * 4, readback, 0, u64::from(rows) * 4);
        Ok(commands.submit())
    }
}
