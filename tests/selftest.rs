//! The start-up self-test: it passes here, fences off what fails, and remembers what it found.

use std::path::{Path, PathBuf};
use std::time::Instant;

use epiphyte::gpu::{Caps, Gpu, GpuOptions};
use epiphyte::selftest::{self, Ability, Report, Verdict};
use epiphyte::{Engine, EngineOptions, Error};

fn open(cache_dir: Option<&Path>) -> Gpu {
    let options = GpuOptions { cache_dir: cache_dir.map(Into::into), ..GpuOptions::default() };
    Gpu::open(options).expect("the tests need a Vulkan or Metal adapter")
}

fn failed(report: &Report) -> Vec<String> {
    let failed = report.verdicts.iter().filter(|v| !v.ok);
    failed.map(|v| format!("{} ({}): {:?}", v.kernel, v.variant, v.reason)).collect()
}

#[test]
fn every_variant_passes_on_every_tier() {
    let all = GpuOptions::default;
    let tiers = [
        all(),
        GpuOptions { subgroups: false, ..all() },
        GpuOptions { f16: false, ..all() },
        GpuOptions { immediates: false, ..all() },
        GpuOptions { checked: true, ..all() },
    ];
    for options in tiers {
        let mut gpu = Gpu::open(options).unwrap();
        let before = gpu.caps().clone();
        let start = Instant::now();
        let report = selftest::run(&mut gpu).unwrap();
        println!("{} variants in {:.2} s", report.verdicts.len(), start.elapsed().as_secs_f64());
        assert_eq!(failed(&report), Vec::<String>::new());
        assert_eq!((&report.caps, gpu.caps(), report.cached), (&before, &before, false));
        let kernels = |report: &Report| report.verdicts.iter().map(|v| v.kernel.clone()).collect::<Vec<_>>();
        for kernel in ["matvec", "embedding", "rms_norm", "rope", "attention", "attention_prefill", "swiglu"] {
            assert!(kernels(&report).iter().any(|k| k == kernel), "{kernel}");
        }
    }
}
#[test]
fn zz_timing() {
    let mut gpu = Gpu::open(GpuOptions::default()).unwrap();
    let start = Instant::now();
    let report = selftest::run(&mut gpu).unwrap();
    eprintln!("{} variants in {:.2} s", report.verdicts.len(), start.elapsed().as_secs_f64());
    for v in report.verdicts { eprintln!("{} {} {:.1}", v.kernel, v.variant, v.milliseconds); }
}
