//! Records dispatches into one pass and submits them: one encoder, one pass, one submit a token or
//! chunk.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::device::{Caps, Gpu};
use super::memory::Class;
use super::pipeline::Op;
use super::tensor::Tensor;
use crate::cancel::CancelToken;
use crate::error::Result;

/// The largest `Params` of any kernel: what every device grants as immediates.
pub const MAX_PARAMS_BYTES: u32 = 128;
/// A slot of the uniform ring: the largest alignment a device may ask for.
const RING_SLOT_BYTES: usize = 256;
const RING_SLOTS: usize = 1024;
/// Of the uniform ring, where there are no immediates.
pub(crate) const RING_BYTES: usize = RING_SLOTS * RING_SLOT_BYTES;
/// So many are left when a recording counts as full: more than a few linears take.
const SPARE_SLOTS: usize = 128;
/// Arithmetic of one submission: about 20 ms on a phone's GPU of 300 GFLOP/s.
const UNIT_OPERATIONS: u64 = 6_000_000_000;
/// Units that the host may be ahead.
const IN_FLIGHT: usize = 2;

/// A recording in progress.
pub struct Commands<'a> {
    gpu: &'a Gpu,
    encoder: wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    ring: Option<Ring>,
    dispatches: u64,
    bytes: u64,
    operations: u64,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    /// Whoever records submits, too.
    by_hand: bool,
    /// Arithmetic that makes a unit of work.
    unit: u64,
    cancel: Option<&'a CancelToken>,
}

/// Parameters of the dispatches recorded so far, where there are no immediates.
pub(crate) struct Ring {
    buffer: Tensor,
    group: wgpu::BindGroup,
    params: Vec<u8>,
}

impl<'a> Commands<'a> {
    /// Starts recording.
    ///
    /// Errors: [`crate::Error::OutOfMemory`] for the uniform ring, where there is one.
    pub fn new(gpu: &'a Gpu) -> Result<Self> {
        let idle = || gpu.pipelines.idle_rings.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let ring = if gpu.caps().immediates {
            None
        } else {
            Some(idle().map_or_else(|| Ring::new(gpu), Ok)?)
        };
        let encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let in_flight = VecDeque::with_capacity(IN_FLIGHT + 1);
        let (dispatches, bytes, operations) = (0, 0, 0);
        let usual = if gpu.caps().software { UNIT_OPERATIONS / 64 } else { UNIT_OPERATIONS };
        Ok(Self {
            gpu,
            encoder,
            pass: None,
            ring,
            dispatches,
            bytes,
            operations,
            in_flight,
            by_hand: false,
            unit: gpu.unit.unwrap_or(usual),
            cancel: None,
        })
    }

    /// The device that will do it.
    pub fn gpu(&self) -> &'a Gpu {
        self.gpu
    }

    /// What that device can do.
    pub fn caps(&self) -> &'a Caps {
        self.gpu.caps()
    }

    /// From now on [`Commands::bound`] gives up once `cancel` is set.
    pub fn cancel_on(&mut self, cancel: &'a CancelToken) {
        self.cancel = Some(cancel);
    }

    /// From now on [`Commands::bound`] only counts: whoever records asks [`Commands::is_full`] where
    /// others may take a turn, and calls [`Commands::flush`]. A unit of work is at least `unit` of
    /// arithmetic.
    pub(crate) fn by_hand(mut self, unit: u64) -> Self {
        self.by_hand = true;
        self.unit = self.unit.max(unit);
        self
    }

    /// Arithmetic recorded since the last submission.
    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    /// Adds `operations` of arithmetic; what was recorded is submitted once that makes a unit of
    /// work, so that no submission runs long, and the host stays at most a few units ahead of the
    /// device.
    ///
    /// Errors: [`crate::Error::Cancelled`] when asked to stop; as [`Gpu::check`].
    pub fn bound(&mut self, operations: u64) -> Result<()> {
        self.operations += operations;
        if self.by_hand || !self.is_full() {
            return Ok(());
        }
        self.flush();
        self.keep_pace()
    }

    /// What was recorded makes a unit of work.
    pub(crate) fn is_full(&self) -> bool {
        self.operations >= self.unit || self.ring.as_ref().is_some_and(Ring::is_nearly_full)
    }

    /// Waits while the device is more than a few units behind.
    ///
    /// Errors: [`crate::Error::Cancelled`] when asked to stop; as [`Gpu::check`].
    pub(crate) fn keep_pace(&mut self) -> Result<()> {
        while self.in_flight.len() > IN_FLIGHT {
            self.gpu.wait(self.in_flight.pop_front())?;
        }
        self.cancel.map_or(Ok(()), CancelToken::check)
    }

    /// Records one dispatch; `read_bytes` is what it reads of weights and KV cache, for the
    /// counters.
    pub fn dispatch(
        &mut self,
        op: &Op,
        params: &impl bytemuck::NoUninit,
        grid: [u32; 3],
        read_bytes: u64,
    ) {
        if grid.contains(&0) {
            return;
        }
        let params = bytemuck::bytes_of(params);
        let kernel = &op.kernel;
        debug_assert_eq!(params.len(), kernel.params_bytes as usize, "{}", kernel.name);
        if self.ring.as_ref().is_some_and(Ring::is_full) {
            self.flush();
        }
        let pass = self.pass.get_or_insert_with(|| {
            self.encoder
                .begin_compute_pass(&wgpu::ComputePassDescriptor::default())
                .forget_lifetime()
        });
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &op.group, &[]);
        match &mut self.ring {
            None => pass.set_immediates(0, params),
            Some(ring) => {
                let offset = ring.push(params);
                pass.set_bind_group(1, &ring.group, &[offset]);
            }
        }
        let [x, y, z] = grid;
        pass.dispatch_workgroups(x, y, z);
        self.dispatches += 1;
        self.bytes += read_bytes;
    }

    /// Copies between buffers, after the dispatches recorded so far.
    pub fn copy(
        &mut self,
        from: &Tensor,
        from_offset: u64,
        to: &Tensor,
        to_offset: u64,
        bytes: u64,
    ) {
        self.pass = None;
        self.encoder.copy_buffer_to_buffer(&from.buffer, from_offset, &to.buffer, to_offset, bytes);
    }

    /// Copies between disjoint ranges of one buffer. WebGPU allows no copy inside a buffer, so it
    /// goes through another.
    ///
    /// Errors: [`Error::OutOfMemory`] for that other buffer.
    pub fn copy_within(&mut self, tensor: &Tensor, from: u64, to: u64, bytes: u64) -> Result<()> {
        let between = self.gpu.storage("copy", bytes)?;
        self.copy(tensor, from, &between, 0, bytes);
        self.copy(&between, 0, tensor, to, bytes);
        Ok(())
    }

    /// Submits what was recorded.
    pub fn submit(mut self) -> wgpu::SubmissionIndex {
        self.flush()
    }

    /// Submits what was recorded so far; recording goes on.
    pub(crate) fn flush(&mut self) -> wgpu::SubmissionIndex {
        self.pass = None;
        self.operations = 0;
        if let Some(ring) = &mut self.ring {
            self.gpu.write(&ring.buffer, 0, &ring.params);
            ring.params.clear();
        }
        let next =
            self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let encoder = std::mem::replace(&mut self.encoder, next);
        let counters = &self.gpu.counters;
        counters.dispatches.fetch_add(std::mem::take(&mut self.dispatches), Ordering::Relaxed);
        counters.bytes.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        counters.submits.fetch_add(1, Ordering::Relaxed);
        let index = self.gpu.queue.submit([encoder.finish()]);
        self.in_flight.push_back(index.clone());
        index
    }
}

impl Drop for Commands<'_> {
    /// The ring is for the next one; what was recorded and not submitted is forgotten.
    fn drop(&mut self) {
        if let Some(mut ring) = self.ring.take() {
            ring.params.clear();
            self.gpu.pipelines.idle_rings.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
        }
    }
}

impl Ring {
    fn new(gpu: &Gpu) -> Result<Self> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let buffer = gpu.buffer(Class::Activations, "params ring", RING_BYTES as u64, usage)?;
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("params ring"),
            layout: &gpu.pipelines.ring_layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &buffer.buffer,
                    offset: 0,
                    size: wgpu::BufferSize::new(u64::from(MAX_PARAMS_BYTES)),
                }),
            }],
        });
        Ok(Self { buffer, group, params: Vec::with_capacity(RING_BYTES) })
    }

    fn is_full(&self) -> bool {
        self.params.len() == RING_BYTES
    }

    /// There may not be room for another layer.
    fn is_nearly_full(&self) -> bool {
        self.params.len() > (RING_SLOTS - SPARE_SLOTS) * RING_SLOT_BYTES
    }

    /// Appends `params` and gives their offset.
    fn push(&mut self, params: &[u8]) -> u32 {
        let offset = self.params.len();
        self.params.extend_from_slice(params);
        self.params.resize(offset + RING_SLOT_BYTES, 0);
        offset as u32
    }
}
