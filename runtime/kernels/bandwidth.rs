//! The device's own limits, measured: read bandwidth and the cost of a dependent dispatch. See `shaders/bandwidth.wgsl`.

use std::time::Instant;

use bytemuck::{Pod, Zeroable};

use crate::error::Result;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Commands, Gpu, KernelSpec};

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct BandwidthParams {
    /// vec4 words.
    pub len: u32,
    /// Lanes in the grid.
    pub stride: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// Bindings: `data`, `sums`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        source: Source { name: "bandwidth", ..Default::default() },
        bindings: &[Read, Write],
        params_bytes: size_of::<BandwidthParams>() as u32,
    }
}

/// Bytes a second that a plain sum over a large buffer reads, the best of several.
///
/// Errors: as [`Gpu::storage`] and [`Gpu::check`].
pub fn measure_read(gpu: &Gpu) -> Result<f64> {
    // Larger than any cache where the device is fast; small where it is not.
    let (bytes, groups, reads) =
        if gpu.caps().software { (32 << 20, 64, 2) } else { (gpu.caps().max_binding_bytes, 2112, 16) };
    let (data, sums) = (gpu.storage("bandwidth data", bytes)?, gpu.storage("bandwidth sums", groups * 1024)?);
    let op = gpu.op(&spec(), &[&data, &sums])?;
    let params = BandwidthParams { len: (bytes / 16) as u32, stride: groups as u32 * 256, pad: [0; 2] };
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let mut commands = Commands::new(gpu)?;
        for _ in 0..reads {
            op.record(&mut commands, &params, [groups as u32, 1, 1], 0);
        }
        best = best.min(timed(gpu, commands)?);
    }
    Ok((bytes * reads) as f64 / best)
}

/// Seconds that one more dependent dispatch takes, the best of several.
///
/// Errors: as [`measure_read`].
pub fn measure_dispatch(gpu: &Gpu) -> Result<f64> {
    let (data, sums) = (gpu.storage("bandwidth data", 4096)?, gpu.storage("bandwidth sums", 1024)?);
    let op = gpu.op(&spec(), &[&data, &sums])?;
    let params = BandwidthParams { len: 1, stride: 256, pad: [0; 2] };
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
