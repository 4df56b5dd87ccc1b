//! The start-up self-test: it passes here, fences off what fails, and remembers what it found.

use std::fs;
use std::path::{Path, PathBuf};

use epiphyte::format::gguf::Gguf;
use epiphyte::gpu::{Caps, Gpu, GpuOptions};
use epiphyte::selftest::{self, Ability, KernelCheck, Report};
use epiphyte::{Engine, EngineOptions, Error};
use safetensors::SafeTensors;

use crate::common::skip::skip;

fn open(options: GpuOptions) -> Gpu {
    Gpu::open(options).expect("the tests need a Vulkan or Metal adapter")
}

fn failed(report: &Report) -> Vec<String> {
    let failed = report.verdicts.iter().filter(|v| !v.ok);
    failed.map(|v| format!("{} ({}): {:?}", v.kernel, v.variant, v.reason)).collect()
}

fn passes(mut gpu: Gpu, kernels: &[&str]) {
    let before = gpu.caps().clone();
    let report = selftest::run(&mut gpu).unwrap();
    assert_eq!(failed(&report), Vec::<String>::new());
    assert_eq!((&report.caps, gpu.caps(), report.cached), (&before, &before, false));
    for kernel in kernels {
        assert!(report.verdicts.iter().any(|v| v.kernel == *kernel), "{kernel} was not tested");
    }
}

#[test]
fn every_variant_passes_on_every_tier() {
    let all = GpuOptions::default;
    let kernels = [
        "matvec",
        "embedding",
        "rms_norm",
        "rope",
        "attention",
        "attention_reduce",
        "swiglu",
        "sample_final",
        "lora_shrink",
    ];
    passes(open(all()), &kernels);
    passes(open(GpuOptions { subgroups: false, ..all() }), &kernels);
    passes(open(GpuOptions { f16: false, ..all() }), &kernels);
    passes(open(GpuOptions { immediates: false, ..all() }), &kernels);
}

#[test]
fn every_variant_for_hardware_passes() {
    let mut gpu = open(GpuOptions { cooperative_matrix: false, ..GpuOptions::default() });
    gpu.treat_as_hardware();
    let training = [
        "matmul_backward",
        "matmul_dense",
        "rms_norm_backward",
        "heads_backward",
        "attention_dkv",
        "cross_entropy",
        "adamw",
    ];
    passes(gpu, &[&["matvec", "matmul", "attention_prefill"][..], &training].concat());
}

/// Logits of the tiny model are those of its golden file, on a device left as the self-test left
/// it.
fn answers_right(gpu: Gpu) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let gguf = Gguf::open(folder.join("tiny_llama.gguf")).unwrap();
    let golden = fs::read(folder.join("tiny_llama_logits.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let data = |name: &str| golden.tensor(name).unwrap().data().to_vec();
    let ids: Vec<u32> = data("tiny_llama.ids")
        .as_chunks()
        .0
        .iter()
        .map(|id| i64::from_le_bytes(*id) as u32)
        .collect();
    let want: Vec<f32> =
        data("tiny_llama.logits").as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    let engine = Engine::from_gguf(gpu, &gguf, &EngineOptions::default(), &mut |_| {}).unwrap();
    let mut session = engine.session();
    session.push_tokens(&ids).unwrap();
    let mut rows = 0;
    let vocab = want.len() / ids.len();
    let each = |row: usize, logits: &[f32]| {
        let want = &want[row * vocab..][..vocab];
        let size = want.iter().fold(0_f32, |size, v| size.max(v.abs()));
        let off = logits.iter().zip(want).fold(0_f32, |off, (a, b)| off.max((a - b).abs()));
        assert!(off <= 2e-3 * size, "row {row} is off by {off} of {size}");
        rows += 1;
    };
    session.logits(0, each).unwrap();
    assert_eq!(rows, ids.len());
}

#[test]
fn what_fails_is_fenced_and_the_engine_still_answers() {
    for ability in [Ability::Subgroups, Ability::F16] {
        let mut gpu = open(GpuOptions::default());
        let before = gpu.caps().clone();
        let uses = |caps: &Caps| match ability {
            Ability::Subgroups => caps.subgroup_size.is_some(),
            _ => caps.f16,
        };
        if !uses(&before) {
            skip(&format!("in part, without {ability:?}: the device has none"));
            continue;
        }
        let report = selftest::run_with(&mut gpu, &|_, uses| uses.contains(&ability)).unwrap();
        assert!(!uses(gpu.caps()), "{ability:?} was not fenced");
        assert_eq!(&report.caps, gpu.caps());
        // Nothing else was taken away, what failed is listed, and what replaced it passed.
        let other =
            if ability == Ability::F16 { before.subgroup_size.is_some() } else { before.f16 };
        let kept = if ability == Ability::F16 {
            gpu.caps().subgroup_size.is_some()
        } else {
            gpu.caps().f16
        };
        assert_eq!(other, kept);
        for verdict in &report.verdicts {
            assert_eq!(verdict.ok, !verdict.uses.contains(&ability), "{verdict:?}");
            assert_eq!(verdict.ok, verdict.reason.is_none(), "{verdict:?}");
        }
        assert!(report.verdicts.iter().any(|v| v.ok && v.kernel == "attention"));
        answers_right(gpu);
    }
}

#[test]
fn a_failing_reference_is_an_error_with_kernel_and_driver() {
    let mut gpu = open(GpuOptions::default());
    let error = selftest::run_with(&mut gpu, &|kernel, _| kernel == "swiglu").unwrap_err();
    let Error::Gpu { op, reason } = error else { panic!("{error}") };
    assert!(op.contains("swiglu"), "{op}");
    assert!(reason.contains(&gpu.description()), "{reason}");
    // Not for want of an ability: of subgroups it can be said, and then they go first.
    let error = selftest::run_with(&mut gpu, &|kernel, _| kernel == "matvec").unwrap_err();
    assert!(error.to_string().contains("matvec"), "{error}");
    assert_eq!(gpu.caps().subgroup_size, None);
}

#[test]
fn the_least_demanding_failure_names_the_culprit() {
    const ALL: Caps = Caps {
        subgroup_size: Some(32),
        f16: true,
        cooperative_matrix: Some(16),
        scalar_fragments: false,
        block_bytes: 0,
        immediates: true,
        software: false,
        max_binding_bytes: 128 << 20,
    };
    use Ability::{CooperativeMatrix, F16, Subgroups};
    let verdict = |(uses, ok): &(&[Ability], bool)| KernelCheck {
        kernel: "k".into(),
        variant: String::new(),
        uses: uses.to_vec(),
        ok: *ok,
        reason: None,
        milliseconds: 0.0,
        training: false,
    };
    let fence = |verdicts: &[(&[Ability], bool)]| {
        selftest::fence(&ALL, &verdicts.iter().map(verdict).collect::<Vec<_>>())
    };
    let no_matrices = Caps { cooperative_matrix: None, ..ALL };
    let no_f16 = Caps { f16: false, ..no_matrices.clone() };
    let no_subgroups = Caps { subgroup_size: None, ..no_matrices.clone() };
    assert_eq!(fence(&[(&[CooperativeMatrix], false), (&[], true)]), Some(no_matrices));
    assert_eq!(fence(&[(&[F16, Subgroups], false), (&[Subgroups], true)]), Some(no_f16.clone()));
    assert_eq!(fence(&[(&[F16, Subgroups], false), (&[F16], false)]), Some(no_f16));
    assert_eq!(fence(&[(&[F16, Subgroups], false), (&[Subgroups], false)]), Some(no_subgroups));
    assert_eq!(fence(&[(&[F16], false), (&[], false)]), None);
    assert_eq!(fence(&[(&[F16], true)]), None);
}

/// The only report in `dir`.
fn report_file(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let reports: Vec<_> =
        entries.filter(|path| path.to_string_lossy().ends_with(".selftest.json")).collect();
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports[0].clone()
}

#[test]
fn the_verdict_is_kept_and_a_damaged_one_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cached = GpuOptions { cache_dir: Some(dir.path().to_path_buf()), ..GpuOptions::default() };
    let run = || {
        let mut gpu = open(cached.clone());
        let report = selftest::run(&mut gpu).unwrap();
        assert_eq!(gpu.caps(), &report.caps);
        report
    };
    let (first, second) = (run(), run());
    assert!(!first.cached && second.cached);
    assert_eq!(
        (first.caps.clone(), first.verdicts.len()),
        (second.caps.clone(), second.verdicts.len())
    );

    // It is what was read that counts.
    let path = report_file(dir.path());
    let whole = fs::read(&path).unwrap();
    let fenced = Report { caps: Caps { f16: false, ..first.caps.clone() }, ..first.clone() };
    fs::write(&path, serde_json::to_vec(&fenced).unwrap()).unwrap();
    assert_eq!((run().caps.f16, run().cached), (false, true));

    for damaged in [&b""[..], b"{}", b"\xff\xfe", &whole[..whole.len() / 2]] {
        fs::write(&path, damaged).unwrap();
        let (anew, then) = (run(), run());
        assert!(!anew.cached && then.cached);
        assert_eq!(anew.caps, first.caps);
    }

    // Abilities left unused make another device of it.
    let mut gpu = open(GpuOptions { subgroups: false, ..cached.clone() });
    assert!(!selftest::run(&mut gpu).unwrap().cached);
    assert!(run().cached);
}

#[test]
fn no_ability_is_ever_added() {
    let mut gpu = open(GpuOptions { subgroups: false, f16: false, ..GpuOptions::default() });
    let before = gpu.caps().clone();
    gpu.restrict(&Caps {
        subgroup_size: Some(8),
        f16: true,
        cooperative_matrix: Some(8),
        ..before.clone()
    });
    assert_eq!(gpu.caps(), &before);
}
