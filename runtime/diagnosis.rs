//! What a machine can do: its GPUs, and of the chosen one the abilities, limits, verdicts of the
//! self-test and speed.

use std::path::PathBuf;

use serde::Serialize;

use crate::engine::DeviceSpeed;
use crate::error::Result;
use crate::gpu::device::describe;
use crate::gpu::instance::adapters;
use crate::gpu::{Gpu, GpuOptions};
use crate::progress::{LoadProgress, Loading};
use crate::selftest;

pub use crate::gpu::Caps;
pub use crate::selftest::{Ability, KernelCheck, Report as SelfTest};

/// What a machine has to compute with, and how fast the chosen GPU is.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Every GPU, fastest kind first.
    pub gpus: Vec<GpuReport>,
    /// The fastest kernels that the chosen one allows; everything from here on is about it.
    pub tier: &'static str,
    /// What kernels may use.
    pub features: Features,
    /// What it was opened with.
    pub limits: Limits,
    /// Its kernels compared with the CPU.
    pub self_test: SelfTest,
    /// Bytes a second.
    pub read_bandwidth: f64,
    /// Between two dispatches of which one waits for the other.
    pub dispatch_gap_seconds: f64,
    /// Where verdicts and pipelines are kept.
    pub cache_dir: Option<PathBuf>,
}

impl Diagnosis {
    /// Opens the GPU that `options` name, tests and times it. Tells `progress` how far the
    /// self-test is; it takes seconds the first time on a driver.
    ///
    /// Errors: [`crate::Error::NoGpu`] listing what there is, [`crate::Error::Gpu`].
    pub fn make(options: GpuOptions, progress: &mut dyn FnMut(LoadProgress)) -> Result<Self> {
        let cache_dir = options.cache_dir.clone();
        let mut gpu = Gpu::open(options)?;
        let self_test = selftest::run_for(&mut gpu, &mut Loading::to_the_end(progress))?;
        let DeviceSpeed { read_bandwidth, dispatch_gap_seconds } = DeviceSpeed::of(&gpu)?;
        Ok(Self {
            gpus: list(&gpu),
            tier: tier(gpu.caps()),
            features: features(&gpu),
            limits: limits(gpu.limits()),
            self_test,
            read_bandwidth,
            dispatch_gap_seconds,
            cache_dir,
        })
    }
}

/// A GPU of the machine.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize)]
pub struct GpuReport {
    /// Name, backend and driver.
    pub description: String,
    /// Such as `DiscreteGpu` or `Cpu`.
    pub kind: String,
    /// The one that the rest is about.
    pub chosen: bool,
}

/// What kernels may use on a GPU.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize)]
pub struct Features {
    /// Lanes can add up among themselves.
    pub subgroups: bool,
    /// The fewest lanes of a subgroup.
    pub subgroup_min_size: u32,
    /// The most lanes of a subgroup.
    pub subgroup_max_size: u32,
    /// Half precision in buffers and arithmetic.
    pub f16: bool,
    /// Side of the square matrices.
    pub cooperative_matrix: Option<u32>,
    /// Parameters travel with the commands.
    pub immediates: bool,
    /// It computes on the processor.
    pub software: bool,
}

/// What the device was opened with, under WebGPU's names.
#[non_exhaustive]
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Bytes.
    pub max_buffer_size: u64,
    /// Bytes.
    pub max_storage_buffer_binding_size: u64,
    /// Buffers that one kernel reads and writes.
    pub max_storage_buffers_per_shader_stage: u32,
    /// Bytes that the lanes of a workgroup share.
    pub max_compute_workgroup_storage_size: u32,
    /// Lanes.
    pub max_compute_invocations_per_workgroup: u32,
    /// Workgroups.
    pub max_compute_workgroups_per_dimension: u32,
    /// Bytes.
    pub max_immediate_size: u32,
}

/// All GPUs; of twins the first is the chosen one.
fn list(gpu: &Gpu) -> Vec<GpuReport> {
    let infos: Vec<wgpu::AdapterInfo> = adapters().iter().map(wgpu::Adapter::get_info).collect();
    let chosen = infos.iter().position(|info| info == gpu.info());
    let report = |(i, info): (usize, &wgpu::AdapterInfo)| GpuReport {
        description: describe(info),
        kind: format!("{:?}", info.device_type),
        chosen: chosen == Some(i),
    };
    infos.iter().enumerate().map(report).collect()
}

/// The fastest kernels that the device allows.
fn tier(caps: &Caps) -> &'static str {
    match caps {
        Caps { cooperative_matrix: Some(_), .. } => "cooperative matrices",
        Caps { f16: true, subgroup_size: Some(_), .. } => "f16 with subgroups",
        Caps { f16: true, .. } => "f16",
        Caps { subgroup_size: Some(_), .. } => "f32 with subgroups",
        _ => "f32",
    }
}

fn features(gpu: &Gpu) -> Features {
    let (caps, info) = (gpu.caps(), gpu.info());
    Features {
        subgroups: caps.subgroup_size.is_some(),
        subgroup_min_size: info.subgroup_min_size,
        subgroup_max_size: info.subgroup_max_size,
        f16: caps.f16,
        cooperative_matrix: caps.cooperative_matrix,
        immediates: caps.immediates,
        software: caps.software,
    }
}

fn limits(limits: &wgpu::Limits) -> Limits {
    Limits {
        max_buffer_size: limits.max_buffer_size,
        max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: limits.max_storage_buffers_per_shader_stage,
        max_compute_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
        max_compute_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
        max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
        max_immediate_size: limits.max_immediate_size,
    }
}
