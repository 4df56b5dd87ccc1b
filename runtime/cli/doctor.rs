//! `epiphyte doctor`: what this machine's GPUs can do, and which of them would be used.

use clap::Args;

use super::output;
use epiphyte::GpuOptions;
use epiphyte::diagnosis::{Diagnosis, SelfTest};
use epiphyte::error::Result;

/// Show this machine's GPUs and what they can do
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs, options: GpuOptions) -> Result<()> {
    let mut bar = output::LoadingBar::default();
    let diagnosis = Diagnosis::make(options, &mut |progress| bar.update(progress));
    drop(bar);
    let diagnosis = diagnosis?;
    if args.json { output::json(&diagnosis) } else { print(&diagnosis) }
}

fn print(report: &Diagnosis) -> Result<()> {
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
fn print_verdicts(report: &SelfTest) -> Result<()> {
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
