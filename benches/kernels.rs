//! The kernels at the shapes of the 135M model, by the bytes they read: `cargo bench --bench
//! kernels`.
//!
//! Weights, cache and activations are zeros, which are as fast as any. Small matrices stay in the
//! caches of a large GPU, so that their figures may lie above what its memory gives.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::print_stdout, reason = "a benchmark says what it measured on, or why not")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use epiphyte::gpu::{Commands, Gpu, Op, Tensor};
use epiphyte::kernels::attention::{
    self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams,
};
use epiphyte::kernels::bandwidth;
use epiphyte::kernels::matmul::{self, Tile};
use epiphyte::kernels::matvec::{self, COLS, Epilogue, LinearParams, MAX_COLS, Variant};
use epiphyte::kernels::matvec_coop::{self, Shape};
use epiphyte::kernels::sample::{self, Sampler};
use epiphyte::{DType, GpuOptions, Result, quant};

const DTYPE: DType = DType::Q4_1;
/// N and K: fused q, k and v; gate and up; down; the head.
const LINEARS: [(&str, u32, u32); 4] =
    [("qkv", 960, 576), ("gate_up", 3072, 576), ("down", 576, 1536), ("head", 49152, 576)];
const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64, page_len: 32, kv_f16: true };
const VOCAB: u32 = 49152;
/// Dispatches in one submission, so that the host's part of it weighs little.
const BATCH: u32 = 32;

fn floats(gpu: &Gpu, len: u32) -> Result<Tensor> {
    gpu.storage("bench", u64::from(len) * 4)
}

/// Times [`BATCH`] of what `record` records, each of which reads `bytes`.
fn time(
    c: &mut Criterion,
    gpu: &Gpu,
    (name, size): (&str, String),
    bytes: u64,
    record: impl Fn(&mut Commands<'_>) -> Result<()>,
) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).throughput(Throughput::Bytes(u64::from(BATCH) * bytes));
    let once = || -> Result<()> {
        let mut commands = Commands::new(gpu)?;
        for _ in 0..BATCH {
            record(&mut commands)?;
        }
        gpu.wait(Some(commands.submit()))
    };
    group.bench_function(BenchmarkId::from_parameter(size), |b| {
        b.iter(|| once().expect("the device works"))
    });
    group.finish();
}

fn linears(c: &mut Criterion, gpu: &Gpu) -> Result<()> {
    for (name, n, k) in LINEARS {
        let (words, scales) = quant::format(DTYPE).packed_len((n * k / 32) as usize);
        let bytes = 4 * (words + scales) as u64;
        let (words, scales) = (floats(gpu, words as u32)?, floats(gpu, scales as u32)?);
        for m in [1, 2, 4, 8, 512] {
            let (x, y) = (floats(gpu, m * k)?, floats(gpu, m * n)?);
            let params = LinearParams { m, n, k_blocks: k / 32, y_stride: n, ..Default::default() };
            let tensors = [&x, &x, &words, &scales, &y];
            if m <= MAX_COLS {
                let (tiling, cols) = (matvec::tiling(gpu.caps(), n, k / 32), matvec::cols(m));
                let variant =
                    Variant { tiling, cols, norm: false, epilogue: Epilogue::Store, lora: None };
                let op = gpu.op(&matvec::spec(gpu.caps(), DTYPE, variant), &tensors)?;
                time(c, gpu, ("matvec", format!("{name} x{m}")), bytes, |commands| {
                    matvec::record(commands, &op, variant, &params, bytes);
                    Ok(())
                });
                let Some(shape) = Shape::of(gpu.caps()).filter(|_| m > COLS) else { continue };
                let (tiling, norm, epilogue, lora) =
                    (shape.tiling(n), false, Epilogue::Store, None);
                let guard = tiling.guard(k / 32);
                let variant = matvec_coop::Variant { shape, tiling, guard, norm, epilogue, lora };
                let op = gpu.op(&matvec_coop::spec(DTYPE, variant), &tensors)?;
                time(c, gpu, ("matvec_coop", format!("{name} x{m}")), bytes, |commands| {
                    matvec_coop::record(commands, &op, variant, &params, bytes);
                    Ok(())
                });
            } else if !gpu.caps().software {
                let tile = Tile::choose(gpu.caps(), m, n);
                let spec = matmul::spec(gpu.caps(), DTYPE, Epilogue::Store, tile);
                let op = gpu.op(&spec, &tensors)?;
                time(c, gpu, ("matmul", format!("{name} x{m}")), bytes, |commands| {
                    matmul::record(commands, &op, tile, &params, bytes);
                    Ok(())
                });
            }
        }
    }
    Ok(())
}

/// One row and a prompt of 512 rows over as many positions.
fn attentions(c: &mut Criterion, gpu: &Gpu) -> Result<()> {
    let heads = Heads { kv_f16: gpu.caps().f16, ..HEADS };
    let Heads { heads: h, kv_heads: g, head_dim: e, page_len, kv_f16 } = heads;
    let (width, scale) = ((h + 2 * g) * e, 1.0 / (e as f32).sqrt());
    for positions in [512, 2048] {
        let (max_pages, splits) = (positions / page_len, attention::splits(positions));
        let bytes = u64::from(2 * positions * g * e) * if kv_f16 { 2 } else { 4 };
        let pages = gpu.upload("pages", &(0..max_pages).collect::<Vec<_>>())?;
        let (keys, values) = (gpu.storage("keys", bytes / 2)?, gpu.storage("values", bytes / 2)?);
        let rows = gpu.upload("rows", &[[0, positions - 1]])?;
        let (qkv, out) = (floats(gpu, width)?, floats(gpu, h * e)?);
        let (parts, stats) = (floats(gpu, splits * h * e)?, floats(gpu, 2 * splits * h)?);
        let op = gpu.op(
            &attention::spec(gpu.caps(), heads, Leaves::Split),
            &[&rows, &pages, &qkv, &keys, &values, &parts, &stats],
        )?;
        let join =
            gpu.op(&attention::reduce_spec(gpu.caps(), e, None), &[&rows, &parts, &stats, &out])?;
        let params = AttentionParams {
            heads: h,
            kv_heads: g,
            max_pages,
            splits,
            scale,
            ..Default::default()
        };
        time(c, gpu, ("attention", format!("{positions}")), bytes, |commands| {
            attention::record(commands, &op, &params, 1, bytes);
            let params = ReduceParams { heads: h, splits, ..Default::default() };
            attention::record_reduce(commands, &join, e, &params, 1);
            Ok(())
        });
        if gpu.caps().software {
            continue;
        }
        let rows =
            gpu.upload("rows", &(0..positions).map(|position| [0, position]).collect::<Vec<_>>())?;
        let (qkv, out) = (floats(gpu, positions * width)?, floats(gpu, positions * h * e)?);
        let op =
            gpu.op(&attention::prefill_spec(heads), &[&rows, &pages, &qkv, &keys, &values, &out])?;
        let params = PrefillParams {
            heads: h,
            kv_heads: g,
            max_pages,
            row0: 0,
            count: positions,
            scale,
            window: 0,
        };
        time(c, gpu, ("attention_prefill", format!("{positions}")), bytes, |commands| {
            attention::record_prefill(commands, &op, &params, bytes);
            Ok(())
        });
    }
    Ok(())
}

fn samples(c: &mut Criterion, gpu: &Gpu) -> Result<()> {
    let greedy = Sampler { top_p: 1.0, repetition_penalty: 1.0, ..Default::default() };
    let drawn = Sampler { temperature: 0.8, top_p: 0.95, top_k: 40, ..greedy };
    for (name, sampler) in [("greedy", greedy), ("top_k 40, top_p 0.95", drawn)] {
        let (samplers, rows) =
            (gpu.upload("samplers", &[sampler])?, gpu.upload("rows", &[[0_u32, 0]])?);
        let (logits, thresholds) = (floats(gpu, VOCAB)?, floats(gpu, 1)?);
        let (partials, ids, ring) =
            (floats(gpu, 2 * VOCAB.div_ceil(sample::RUN))?, floats(gpu, 1)?, floats(gpu, 1)?);
        let seen = floats(gpu, sample::seen_words(VOCAB))?;
        let threshold = gpu.op(&sample::threshold_spec(), &[&samplers, &logits, &thresholds])?;
        let partial =
            gpu.op(&sample::partial_spec(), &[&samplers, &rows, &logits, &thresholds, &partials])?;
        let last = gpu.op(&sample::final_spec(), &[&partials, &ids, &rows, &seen, &ring])?;
        let record = |commands: &mut Commands<'_>, threshold: &Op| {
            if sampler.is_restricted() {
                sample::record_threshold(commands, threshold, VOCAB, 1);
            }
            sample::record_partial(commands, &partial, VOCAB, 1);
            sample::record_final(commands, &last, VOCAB, 1, 0);
        };
        time(c, gpu, ("sample", name.into()), u64::from(VOCAB) * 4, |commands| {
            record(commands, &threshold);
            Ok(())
        });
    }
    Ok(())
}

fn kernels(c: &mut Criterion) {
    let run = |c: &mut Criterion| -> Result<()> {
        let gpu = Gpu::open(GpuOptions::from_env()?)?;
        println!("{}, reads {:.1} GB/s", gpu.description(), bandwidth::measure_read(&gpu)? / 1e9);
        linears(c, &gpu)?;
        attentions(c, &gpu)?;
        samples(c, &gpu)
    };
    run(c).expect("a device to measure");
}

criterion_group!(benches, kernels);
criterion_main!(benches);
