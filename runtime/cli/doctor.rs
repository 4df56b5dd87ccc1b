//! `epiphyte doctor`: what this machine's GPUs can do, and which of them would be used.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::output;
use crate::error::Result;
use crate::gpu::device::describe;
use crate::gpu::instance::adapters;
use crate::gpu::{Caps, Gpu, GpuOptions};
use crate::kernels::bandwidth;
use crate::selftest;

/// Show this machine's GPUs and what they can do
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    gpus: Vec<GpuReport>,
    /// Of the chosen one, from here on.
    tier: &'static str,
    features: Features,
    limits: Limits,
    self_test: selftest::Report,
    /// Bytes a second.
    read_bandwidth: f64,
    dispatch_gap_seconds: f64,
    cache_dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct GpuReport {
    description: String,
    kind: String,
    chosen: bool,
}

/// What the kernels use; see [`Caps`].
#[derive(Serialize)]
struct Features {
    subgroups: bool,
    subgroup_min_size: u32,
    subgroup_max_size: u32,
    f16: bool,
    /// Side of the square matrices.
    cooperative_matrix: Option<u32>,
    immediates: bool,
    software: bool,
}

/// What the device was opened with, under WebGPU's names.
#[derive(Serialize)]
struct Limits {
    max_buffer_size: u64,
    max_storage_buffer_binding_size: u64,
    max_storage_buffers_per_shader_stage: u32,
    max_compute_workgroup_storage_size: u32,
    max_compute_invocations_per_workgroup: u32,
    max_compute_workgroups_per_dimension: u32,
    max_immediate_size: u32,
}

pub(super) fn run(args: &DoctorArgs, options: GpuOptions) -> Result<()> {
    let cache_dir = options.cache_dir.clone();
    let mut gpu = Gpu::open(options)?;
    let mut bar = output::LoadingBar::default();
    let self_test = selftest::run_reporting(&mut gpu, &mut |progress| bar.update(progress));
    drop(bar);
    let self_test = self_test?;
    let report = Report {
        gpus: list(&gpu),
        tier: tier(gpu.caps()),
        features: features(&gpu),
        limits: limits(gpu.limits()),
        self_test,
        read_bandwidth: bandwidth::measure_read(&gpu)?,
        dispatch_gap_seconds: bandwidth::measure_dispatch(&gpu)?,
        cache_dir,
    };
    if args.json { output::json(&report) } else { print(&report) }
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

fn print(report: &Report) -> Result<()> {
    for gpu in &report.gpus {
        let mark = if gpu.chosen { "*" } else { " " };
        output::line(&format!("{mark} {}, {}", gpu.description, gpu.kind))?;
    }
    let (f, l) = (&report.features, &report.limits);
    let yes = |on: bool| if on { "yes" } else { "no" };
    let matrix =
        f.cooperative_matrix.map_or_else(|| "no".into(), |side| format!("{side}x{side}x{side}"));
    output::line(&format!("tier        {}", report.tier))?;
    let sizes = format!("{} to {} lanes", f.subgroup_min_size, f.subgroup_max_size);
    output::line(&format!("subgroups   {}, {sizes}", yes(f.subgroups)))?;
    output::line(&format!("f16         {}", yes(f.f16)))?;
    output::line(&format!("matrices    {matrix}"))?;
    output::line(&format!("immediates  {}", yes(f.immediates)))?;
    let binding = output::human_bytes(l.max_storage_buffer_binding_size);
    let buffer = output::human_bytes(l.max_buffer_size);
    let buffers = l.max_storage_buffers_per_shader_stage;
    output::line(&format!(
        "buffers     {buffers} a stage, bindings of {binding}, buffers of {buffer}"
    ))?;
    let (lanes, shared) =
        (l.max_compute_invocations_per_workgroup, l.max_compute_workgroup_storage_size);
    output::line(&format!("workgroups  {lanes} lanes, {}", output::human_bytes(shared.into())))?;
    output::line(&format!("bandwidth   {:.1} GB/s read", report.read_bandwidth / 1e9))?;
    output::line(&format!(
        "dispatch    {:.1} µs each, dependent",
        report.dispatch_gap_seconds * 1e6
    ))?;
    let cache =
        report.cache_dir.as_ref().map_or_else(|| "none".into(), |dir| dir.display().to_string());
    output::line(&format!("cache       {cache}"))?;
    print_verdicts(&report.self_test)
}

/// A line a kernel, and one for each variant that failed.
fn print_verdicts(report: &selftest::Report) -> Result<()> {
    let cached = if report.cached { ", as found before" } else { "" };
    output::line(&format!("self-test   kernel               passed  of    time{cached}"))?;
    let mut kernels: Vec<&str> = Vec::new();
    for verdict in &report.verdicts {
        if !kernels.contains(&verdict.kernel.as_str()) {
            kernels.push(&verdict.kernel);
        }
    }
    for kernel in kernels {
        let all = || report.verdicts.iter().filter(|v| v.kernel == kernel);
        let (passed, of) = (all().filter(|v| v.ok).count(), all().count());
        let time: f64 = all().map(|v| v.milliseconds).sum();
        output::line(&format!("            {kernel:20} {passed:6} {of:3} {time:6.0} ms"))?;
        for v in all().filter(|v| !v.ok) {
            output::line(&format!(
                "              {}: {}",
                v.variant,
                v.reason.as_deref().unwrap_or_default()
            ))?;
        }
    }
    Ok(())
}
