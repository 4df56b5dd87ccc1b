//! The kernels at the shapes of the 135M model, on a GPU also of an 8B, by the bytes they read:
//! `cargo bench --bench kernels`.
//!
//! Weights, cache and activations are zeros, which are as fast as any. Small matrices stay in the
//! caches of a large GPU, so that their figures may lie above what its memory gives.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::print_stdout, reason = "a benchmark says what it measured on, or why not")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use epiphyte::gpu::{Commands, Gpu, KernelSpec, Op, Tensor};
use epiphyte::kernels::attention::{
    self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams,
};
use epiphyte::kernels::bandwidth;
use epiphyte::kernels::matmul::{self, Tile};
use epiphyte::kernels::matmul_backward::{self, MatmulBackwardParams, Way};
use epiphyte::kernels::matvec::{self, Epilogue, LinearParams, Variant};
use epiphyte::kernels::matvec_coop::{self, Shape};
use epiphyte::kernels::sample::{self, Sampler};
use epiphyte::{DType, GpuOptions, Result, quant};

const DTYPE: DType = DType::Q4_1;
/// N and K: fused q, k and v; gate and up; down; the head.
const LINEARS: [(&str, u32, u32); 4] =
    [("qkv", 960, 576), ("gate_up", 3072, 576), ("down", 576, 1536), ("head", 49152, 576)];
/// Of an 8B model, where there is a GPU.
const LARGE: [(&str, u32, u32); 4] = [
    ("8b qkv", 6144, 4096),
    ("8b o", 4096, 4096),
    ("8b gate_up", 28672, 4096),
    ("8b down", 4096, 14336),
];
/// Of a prompt.
const MOST_ROWS: u32 = 512;
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

/// A matrix `[n, k]`, its activations for up to [`MOST_ROWS`] rows, and what reading it takes.
struct Matrix {
    name: &'static str,
    n: u32,
    k: u32,
    words: Tensor,
    scales: Tensor,
    x: Tensor,
    y: Tensor,
    bytes: u64,
}

impl Matrix {
    fn new(gpu: &Gpu, (name, n, k): (&'static str, u32, u32)) -> Result<Self> {
        let (words, scales) = quant::format(DTYPE).packed_len((n * k / 32) as usize);
        Ok(Self {
            name,
            n,
            k,
            bytes: 4 * (words + scales) as u64,
            words: floats(gpu, words as u32)?,
            scales: floats(gpu, scales as u32)?,
            x: floats(gpu, MOST_ROWS * k)?,
            y: floats(gpu, MOST_ROWS * n)?,
        })
    }

    fn params(&self, m: u32) -> LinearParams {
        let (n, k_blocks) = (self.n, self.k / 32);
        LinearParams { m, n, k_blocks, y_stride: n, ..Default::default() }
    }

    fn op(&self, gpu: &Gpu, spec: &KernelSpec) -> Result<Op> {
        gpu.op(spec, &[&self.x, &self.x, &self.words, &self.scales, &self.y])
    }

    /// Row by row.
    fn matvec(&self, c: &mut Criterion, gpu: &Gpu, m: u32) -> Result<()> {
        let (tiling, cols) = (matvec::tiling(gpu.caps(), self.n, self.k / 32), matvec::cols(m));
        let epilogue = Epilogue::Store;
        let variant = Variant { tiling, cols, norm: false, epilogue, lora: None };
        let op = self.op(gpu, &matvec::spec(gpu.caps(), DTYPE, variant))?;
        time(c, gpu, ("matvec", format!("{} x{m}", self.name)), self.bytes, |commands| {
            matvec::record(commands, &op, variant, &self.params(m), self.bytes);
            Ok(())
        });
        Ok(())
    }

    /// Few rows on cooperative matrices, in every way for so many of them.
    fn matvec_coop(&self, c: &mut Criterion, gpu: &Gpu, m: u32) -> Result<()> {
        let Some(shape) = Shape::of(gpu.caps()) else { return Ok(()) };
        let (epilogue, cols) = (Epilogue::Store, shape.tiling(m, self.n).cols);
        for tiling in shape.tilings().filter(|tiling| tiling.cols == cols) {
            let guard = tiling.guard(self.k / 32);
            let variant =
                matvec_coop::Variant { shape, tiling, guard, norm: false, epilogue, lora: None };
            let op = self.op(gpu, &matvec_coop::spec(DTYPE, variant))?;
            let name = format!("{} x{m}, {} of {}", self.name, tiling.split, tiling.subgroups);
            time(c, gpu, ("matvec_coop", name), self.bytes, |commands| {
                matvec_coop::record(commands, &op, variant, &self.params(m), self.bytes);
                Ok(())
            });
        }
        Ok(())
    }

    /// In tiles of every size, there and back.
    fn matmul(&self, c: &mut Criterion, gpu: &Gpu, m: u32) -> Result<()> {
        for &tile in Tile::all(gpu.caps()) {
            let name = format!("{} x{m} {tile:?}", self.name);
            let op = self.op(gpu, &matmul::spec(gpu.caps(), DTYPE, Epilogue::Store, tile))?;
            time(c, gpu, ("matmul", name.clone()), self.bytes, |commands| {
                matmul::record(commands, &op, tile, &self.params(m), self.bytes);
                Ok(())
            });
            let exponents = gpu.upload("exponents", &vec![127_u32; m as usize])?;
            let mut tensors = vec![&self.y, &self.words, &self.scales, &self.x];
            tensors.extend(matmul_backward::reads_exponents(gpu.caps()).then_some(&exponents));
            let way = Way { tile, fours: true };
            let op = gpu.op(&matmul_backward::spec(gpu.caps(), DTYPE, way), &tensors)?;
            let (n, k_blocks) = (self.n, self.k / 32);
            let params =
                MatmulBackwardParams { m, n, k_blocks, dy_stride: n, ..Default::default() };
            time(c, gpu, ("matmul_backward", name), self.bytes, |commands| {
                matmul_backward::record(commands, &op, gpu.caps(), way, &params, self.bytes);
                Ok(())
            });
        }
        Ok(())
    }
}

fn linears(c: &mut Criterion, gpu: &Gpu) -> Result<()> {
    let large = if gpu.caps().software { &LARGE[..0] } else { &LARGE[..] };
    for linear in LINEARS.iter().chain(large) {
        let matrix = Matrix::new(gpu, *linear)?;
        for m in [1, 2, 4, 8] {
            matrix.matvec(c, gpu, m)?;
        }
        for m in [8, 16, 32, 64] {
            matrix.matvec_coop(c, gpu, m)?;
        }
        if !gpu.caps().software {
            matrix.matmul(c, gpu, MOST_ROWS)?;
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
        let op = gpu.op(
            &attention::prefill_spec(gpu.caps(), heads),
            &[&rows, &pages, &qkv, &keys, &values, &out],
        )?;
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
            attention::record_prefill(commands, &op, heads, &params, bytes);
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
        let tallied = |words| floats(gpu, sample::TALLIED_ROWS * words);
        let (tallies, found) = (tallied(sample::TALLIES)?, tallied(sample::FOUND)?);
        let threshold = gpu
            .op(&sample::threshold_spec(), &[&samplers, &logits, &tallies, &found, &thresholds])?;
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
