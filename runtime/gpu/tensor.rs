//! Buffers on the device: allocation, upload, read back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::Gpu;
use super::fault::from_wgpu;
use super::memory::{Allocated, Class};
use crate::error::{Error, Result};

/// A storage buffer on the device.
#[derive(Debug)]
pub struct Tensor {
    pub(crate) buffer: wgpu::Buffer,
    class: Class,
    allocated: Arc<Allocated>,
}

impl Tensor {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.buffer.size()
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.allocated.of(self.class).fetch_sub(self.buffer.size(), Ordering::Relaxed);
    }
}

impl Gpu {
    /// A storage buffer of `bytes`, zeroed on first use. An empty one gets 16 bytes, so that it can
    /// be bound.
    ///
    /// Errors: [`Error::OutOfMemory`] with the size; [`Error::InvalidArgument`] over the device's
    /// largest buffer.
    pub fn storage(&self, label: &str, bytes: u64) -> Result<Tensor> {
        self.storage_of(Class::Overhead, label, bytes)
    }

    /// As [`Gpu::storage`], counted as `class`.
    pub(super) fn storage_of(&self, class: Class, label: &str, bytes: u64) -> Result<Tensor> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        self.buffer(class, label, bytes, usage)
    }

    /// A buffer that the host can map to read.
    pub(crate) fn readback(&self, label: &str, bytes: u64) -> Result<Tensor> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        self.buffer(Class::Overhead, label, bytes, usage)
    }

    pub(crate) fn buffer(
        &self,
        class: Class,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Tensor> {
        let size = padded(bytes);
        if size > self.limits().max_buffer_size {
            return Err(Error::OutOfMemory { what: label.to_string(), needed_bytes: bytes });
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        let refused = pollster::block_on(validation.pop()).map(|e| from_wgpu(label, e));
        if pollster::block_on(memory.pop()).is_some() {
            return Err(Error::OutOfMemory { what: label.to_string(), needed_bytes: bytes });
        }
        if let Some(error) = refused {
            return Err(error);
        }
        let allocated = Arc::clone(&self.counters.allocated);
        allocated.of(class).fetch_add(size, Ordering::Relaxed);
        Ok(Tensor { buffer, class, allocated })
    }

    /// A storage buffer holding `data`.
    ///
    /// Errors: as [`Gpu::storage`].
    pub fn upload<T: bytemuck::NoUninit>(&self, label: &str, data: &[T]) -> Result<Tensor> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let tensor = self.storage(label, bytes.len() as u64)?;
        self.write(&tensor, 0, data);
        Ok(tensor)
    }

    /// Writes `data` at byte `offset`, before any later submission runs.
    pub fn write<T: bytemuck::NoUninit>(&self, tensor: &Tensor, offset: u64, data: &[T]) {
        if !data.is_empty() {
            self.counters.writes.fetch_add(1, Ordering::Relaxed);
            self.queue.write_buffer(&tensor.buffer, offset, bytemuck::cast_slice(data));
        }
    }

    /// Sends pending writes on, so that the memory they are staged in is given back early.
    pub(crate) fn flush_writes(&self) {
        self.queue.submit([]);
        self.counters.submits.fetch_add(1, Ordering::Relaxed);
        let _ = self.device.poll(wgpu::PollType::Poll);
    }

    /// Reads `len` elements from byte `offset`, waiting for what was submitted before.
    ///
    /// Errors: as [`Gpu::check`].
    pub fn read<T: bytemuck::Pod>(
        &self,
        tensor: &Tensor,
        offset: u64,
        len: usize,
    ) -> Result<Vec<T>> {
        let bytes = (len * size_of::<T>()) as u64;
        let staging = self.readback("read", bytes)?;
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(
            &tensor.buffer,
            offset,
            &staging.buffer,
            0,
            bytes.next_multiple_of(4),
        );
        let copied = self.queue.submit([encoder.finish()]);
        self.counters.submits.fetch_add(1, Ordering::Relaxed);
        let mut out = vec![T::zeroed(); len];
        self.take(&staging, copied, &mut out)?;
        Ok(out)
    }

    /// Waits for the submission that copies to `staging`, then takes what is at its beginning.
    ///
    /// Errors: as [`Gpu::check`].
    pub(crate) fn take<T: bytemuck::Pod>(
        &self,
        staging: &Tensor,
        copied: wgpu::SubmissionIndex,
        out: &mut [T],
    ) -> Result<()> {
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        // Copies are whole words.
        let mapped = staging.buffer.slice(..out.len().next_multiple_of(4).max(4) as u64);
        mapped.map_async(wgpu::MapMode::Read, |_| {});
        let waited = self.wait(Some(copied));
        let taken = waited.and_then(|()| {
            let view = mapped
                .get_mapped_range()
                .map_err(|e| Error::Gpu { op: "read back".into(), reason: e.to_string() })?;
            out.copy_from_slice(&view[..out.len()]);
            Ok(())
        });
        staging.buffer.unmap();
        taken
    }
}

/// The size of a buffer of `bytes`: whole words, and never so few that it can't be bound.
pub(super) fn padded(bytes: u64) -> u64 {
    bytes.max(16).checked_next_multiple_of(4).unwrap_or(u64::MAX)
}
