//! The device's own limits, measured: read bandwidth and the cost of a dependent dispatch. See
//! `shaders/bandwidth.wgsl`.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, Gpu, KernelSpec, Tensor};

params! {
    /// What a dispatch says.
    pub struct BandwidthParams {
        /// vec4 words.
        pub len: u32,
        /// Lanes in the grid.
        pub stride: u32,
    }
}

/// Bindings: `data`, `sums`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "bandwidth",
        bindings: &[Read, Write],
        params: BandwidthParams::LAYOUT,
        ..Default::default()
    }
}

/// What is read to measure: far more than a cache holds, and long enough that starting a dispatch
/// does not count.
struct Probe {
    bytes: u64,
    groups: u32,
    /// Times over, in one submission.
    reads: u32,
}

impl Probe {
    fn of(gpu: &Gpu) -> Self {
        let most = gpu.caps().max_binding_bytes;
        match gpu.info().device_type {
            _ if gpu.caps().software => Self { bytes: most.min(32 << 20), groups: 64, reads: 2 },
            wgpu::DeviceType::DiscreteGpu => {
                Self { bytes: most.min(1 << 30), groups: 2112, reads: 8 }
            }
            // They share the memory of all else.
            _ => Self { bytes: most.min(256 << 20), groups: 2112, reads: 4 },
        }
    }

    /// The buffer to read, smaller where there is no room for it.
    fn data(&mut self, gpu: &Gpu) -> Result<Tensor> {
        loop {
            match gpu.storage("bandwidth data", self.bytes) {
                Err(Error::OutOfMemory { .. }) if self.bytes > SMALLEST => self.bytes /= 2,
                data => return data,
            }
        }
    }
}

/// Bytes that are read in any case.
const SMALLEST: u64 = 16 << 20;

/// Bytes a second that a plain sum over a large buffer reads, the best of several.
///
/// Errors: as [`Gpu::storage`] and [`Gpu::check`].
pub fn measure_read(gpu: &Gpu) -> Result<f64> {
    let mut probe = Probe::of(gpu);
    let data = probe.data(gpu)?;
    let Probe { bytes, groups, reads } = probe;
    let sums = gpu.storage("bandwidth sums", u64::from(groups) * 1024)?;
    let op = gpu.op(&spec(), &[&data, &sums])?;
    let params = BandwidthParams { len: (bytes / 16) as u32, stride: groups * 256 };
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let mut commands = Commands::new(gpu)?;
        for _ in 0..reads {
            op.record(&mut commands, &params, [groups, 1, 1], 0);
        }
        best = best.min(timed(gpu, commands)?);
    }
    Ok((bytes * u64::from(reads)) as f64 / best)
}

/// Seconds that one more dependent dispatch takes, the best of several.
///
/// Errors: as [`measure_read`].
pub fn measure_dispatch(gpu: &Gpu) -> Result<f64> {
    let (data, sums) = (gpu.storage("bandwidth data", 4096)?, gpu.storage("bandwidth sums", 1024)?);
    let op = gpu.op(&spec(), &[&data, &sums])?;
    let params = BandwidthParams { len: 1, stride: 256 };
    let dispatches = 500;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let mut commands = Commands::new(gpu)?;
        for _ in 0..dispatches {
            op.record(&mut commands, &params, [1, 1, 1], 0);
        }
        best = best.min(timed(gpu, commands)?);
    }
    Ok(best / f64::from(dispatches))
}

fn timed(gpu: &Gpu, commands: Commands<'_>) -> Result<f64> {
    let start = Instant::now();
    let index = commands.submit();
    gpu.wait(Some(index))?;
    Ok(start.elapsed().as_secs_f64())
}
