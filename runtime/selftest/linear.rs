//! Weights in every first-class format: the look-up, mat-vecs and mat-muls, chosen as the engine
//! chooses them.

use half::{bf16, f16};

use super::Ability::CooperativeMatrix;
use super::cases::{
    Case, Near, Outcome, Random, case, poisoned, rms_scale, silu, subgroups, submit,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Caps, Gpu};
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::matmul::{self, Tile};
use crate::kernels::matvec::{COLS, Epilogue, LinearParams, MAX_COLS};
use crate::kernels::matvec_coop::{Shape, Tiling};
use crate::model::linear::{Binding, Chunk, Linear, LinearOp, RowRange, USize};
use crate::quant::{self, BLOCK};

/// Formats whose every variant is tested.
pub(super) const FORMATS: [DType; 4] = [DType::Q4_0, DType::Q4_1, DType::Q4_K, DType::Q8_0];
/// Rows of W, no multiple of a tile.
pub(super) const N: usize = 40;
/// Three quarters of what 32 lanes take in a step: the widest tiling, and not all of it busy.
pub(super) const K: usize = 768;
pub(super) const EPS: f32 = 1e-5;
/// The tolerance of cooperative matrices, which round both factors to f16.
pub(super) const HALVES: f64 = 2e-3;
/// Rows of x: one for each number of columns of `matvec`, one for two passes of it, then a mat-mul
/// of more than a tile.
const ROWS: [usize; 5] = [1, 2, 3, 5, 67];

/// With a folded norm or without, and the epilogue: those that models use, the first two also on
/// many rows.
const PASSES: [Pass; 4] = [
    Pass { norm: false, epilogue: Epilogue::Store },
    Pass { norm: false, epilogue: Epilogue::Add },
    Pass { norm: true, epilogue: Epilogue::Store },
    Pass { norm: true, epilogue: Epilogue::SwiGlu },
];

/// What is fused into a product.
#[derive(Clone, Copy)]
struct Pass {
    norm: bool,
    epilogue: Epilogue,
}

/// Of making few rows on cooperative matrices.
#[derive(Clone, Copy)]
struct Way {
    shape: Shape,
    tiling: Tiling,
}

pub(super) fn cases(gpu: &Gpu) -> Vec<Case> {
    let caps = gpu.caps();
    let sampled = gpu.info().device_type == wgpu::DeviceType::Cpu;
    let mut cases = Vec::new();
    for (f, dtype) in FORMATS.into_iter().enumerate() {
        cases.push(case("embedding", dtype.name().into(), vec![], move |gpu| look_up(gpu, dtype)));
        for (r, rows) in ROWS.into_iter().enumerate() {
            let passes = if rows <= MAX_COLS as usize { &PASSES[..] } else { &PASSES[..2] };
            let asked = passes.iter().enumerate().filter(|(p, _)| !sampled || is_sampled(f, r, *p));
            cases.extend(asked.map(|(_, pass)| product(caps, dtype, rows, *pass)));
        }
        if caps.cooperative_matrix.is_some() {
            cases.extend(Tile::ALL.map(|tile| {
                let variant = format!("{}, {tile:?} tile", dtype.name());
                let run = move |gpu: &Gpu| multiply_tiles(gpu, dtype, tile);
                case("matmul_coop", variant, vec![CooperativeMatrix], run)
            }));
        }
        cases.extend(few_on_matrices(caps, dtype, if sampled { &PASSES[f..=f] } else { &PASSES }));
    }
    // These share all but the dequantisation with the others.
    for dtype in DType::ALL.into_iter().filter(|dtype| !FORMATS.contains(dtype) && !caps.software) {
        cases.push(case("embedding", dtype.name().into(), vec![], move |gpu| look_up(gpu, dtype)));
        cases.extend([1, ROWS[4]].map(|rows| product(caps, dtype, rows, PASSES[0])));
    }
    cases
}

/// A software GPU takes a tenth of a second and more to compile a variant. It sees every format
/// twice, every number of rows and every pass once, not each with each.
fn is_sampled(format: usize, rows: usize, pass: usize) -> bool {
    let many = ROWS[rows] > MAX_COLS as usize;
    if many { pass == format % 2 } else { rows == format && pass == format }
}

fn product(caps: &Caps, dtype: DType, rows: usize, Pass { norm, epilogue }: Pass) -> Case {
    let narrow = rows <= MAX_COLS as usize;
    let (kernel, uses) = match caps.cooperative_matrix {
        Some(_) if !narrow => ("matmul_coop", vec![CooperativeMatrix]),
        Some(_) if caps.software && rows > COLS as usize => {
            ("matvec_coop", vec![CooperativeMatrix])
        }
        None if !narrow && !caps.software => ("matmul", vec![]),
        _ => ("matvec", subgroups(caps)),
    };
    let norm_name = if norm { ", norm" } else { "" };
    let variant = format!("{}, {rows} rows{norm_name}, {epilogue:?}", dtype.name());
    let tolerance = if kernel.ends_with("_coop") { HALVES } else { 1e-4 };
    case(kernel, variant, uses, move |gpu| {
        multiply(gpu, dtype, rows, None, Pass { norm, epilogue }, tolerance)
    })
}

/// Few rows on cooperative matrices, in every way that is chosen from.
fn few_on_matrices(caps: &Caps, dtype: DType, passes: &'static [Pass]) -> Vec<Case> {
    let ways =
        Shape::of(caps).map(|shape| shape.tilings().map(move |tiling| Way { shape, tiling }));
    let each =
        ways.into_iter().flatten().flat_map(|way| passes.iter().map(move |pass| (way, *pass)));
    let name = |tiling: Tiling, Pass { norm, epilogue }: Pass| {
        let norm = if norm { ", norm" } else { "" };
        format!(
            "{}, {} columns, {} of {} subgroups together{norm}, {epilogue:?}",
            dtype.name(),
            tiling.cols,
            tiling.split,
            tiling.subgroups
        )
    };
    // More rows than those that adapters and norms are folded into have neither.
    let few = |way: &Way| way.tiling.cols == MAX_COLS;
    let plain = |pass: &Pass| !pass.norm && !pass.epilogue.is_gated();
    let all = each.filter(|(way, pass)| few(way) || plain(pass)).map(|(way, pass)| {
        let rows = way.tiling.cols as usize - 3;
        let run = move |gpu: &Gpu| multiply(gpu, dtype, rows, Some(way), pass, HALVES);
        case("matvec_coop", name(way.tiling, pass), vec![CooperativeMatrix], run)
    });
    all.collect()
}

/// Weights `[N, K]` on the device, and their exact values.
pub(super) struct Weights {
    pub(super) linear: Linear,
    pub(super) values: Vec<f32>,
}

impl Weights {
    pub(super) fn random(gpu: &Gpu, dtype: DType, random: &mut Random) -> Result<Self> {
        let blocks = blocks(dtype, random);
        let format = quant::format(dtype);
        let mut values = vec![0.0; N * K];
        format.dequantize(&blocks, &mut values);
        let (words, scales) = format.packed_len(N * K / BLOCK);
        let (mut words, mut scales) = (vec![0_u32; words], vec![0_u32; scales]);
        format.repack(&blocks, &mut words, &mut scales);
        let (words, scales) = (gpu.upload("words", &words)?, gpu.upload("scales", &scales)?);
        let chunks = vec![Chunk { dtype, row0: 0, rows: N, words, scales }];
        Ok(Self { linear: Linear { n: N, k: K, chunks }, values })
    }
}

/// Random blocks with reasonable scales. What is not quantised has its upper half replaced as if it
/// were one.
fn blocks(dtype: DType, random: &mut Random) -> Vec<u8> {
    let scales: &[usize] = match dtype {
        DType::F32 => &[2],
        DType::F16 | DType::BF16 | DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::NF4 | DType::NF4_DQ | DType::IQ4_NL | DType::Q3_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K | DType::Q2_1 => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::TQ2_0 => &[64],
    };
    let bytes = N * K / dtype.block_len() * dtype.block_bytes();
    let mut blocks: Vec<u8> = (0..bytes).map(|_| (random.bits() >> 24) as u8).collect();
    for block in blocks.chunks_mut(dtype.block_bytes()) {
        for &at in scales {
            let d = random.signed() / 8.0;
            let brain = matches!(dtype, DType::F32 | DType::BF16);
            let bytes = if brain {
                bf16::from_f32(d).to_le_bytes()
            } else {
                f16::from_f32(d).to_le_bytes()
            };
            block[at..at + 2].copy_from_slice(&bytes);
        }
    }
    blocks
}

fn look_up(gpu: &Gpu, dtype: DType) -> Result<Vec<Outcome>> {
    let weights = Weights::random(gpu, dtype, &mut Random(3))?;
    let ids = [7_u32, 0, 39, 7, 16];
    let x = poisoned(gpu, &[], ids.len() * K)?;
    let token_ids = gpu.upload("token_ids", &ids)?;
    let params =
        EmbeddingParams { k_blocks: (K / BLOCK) as u32, row0: 0, rows: N as u32, scale: 1.0 };
    for chunk in &weights.linear.chunks {
        let op = gpu.op(&embedding::spec(dtype), &[&token_ids, &chunk.words, &chunk.scales, &x])?;
        submit(gpu, |commands| {
            embedding::record(commands, &op, params, ids.len() as u32);
            Ok(())
        })?;
    }
    let near = |w: &f32| Near { value: (*w).into(), bound: f64::from(w.abs()) * 1e-5 + 1e-5 };
    let want = ids
        .iter()
        .flat_map(|&id| weights.values[id as usize * K..][..K].iter().map(near))
        .collect();
    Ok(vec![Outcome::read(gpu, &x, want)?])
}

fn multiply(
    gpu: &Gpu,
    dtype: DType,
    rows: usize,
    way: Option<Way>,
    Pass { norm, epilogue }: Pass,
    tolerance: f64,
) -> Result<Vec<Outcome>> {
    let mut random = Random(4 + rows as u64);
    let weights = Weights::random(gpu, dtype, &mut random)?;
    let (x, gain) = (random.vec(rows * K), random.vec(K));
    let width = if epilogue == Epilogue::SwiGlu { N / 2 } else { N };
    let before = if epilogue == Epilogue::Add { random.vec(rows * width) } else { vec![] };
    let y = poisoned(gpu, &before, rows * width)?;
    let (x_tensor, gain_tensor) = (gpu.upload("x", &x)?, gpu.upload("gain", &gain)?);
    let norm = norm.then_some((&gain_tensor, EPS));
    let op = LinearOp::new(
        gpu,
        &weights.linear,
        Binding { x: &x_tensor, norm, y: &y, y_stride: width, epilogue, lora: None },
    )?;
    let op = match way {
        Some(Way { shape, tiling }) => op.on_matrices(shape, tiling),
        None => op,
    };
    submit(gpu, |commands| op.record(commands, RowRange::first(rows as u32), USize::default()))?;
    let gain = norm.map(|_| gain.as_slice());
    let sums: Vec<Vec<Near>> =
        x.chunks(K).map(|x| reference(&weights.values, x, gain, tolerance)).collect();
    let want = sums
        .iter()
        .flatten()
        .zip(&before)
        .map(|(sum, y)| Near { value: sum.value + f64::from(*y), ..*sum });
    let want = match epilogue {
        Epilogue::Store => sums.concat(),
        Epilogue::Add => want.collect(),
        Epilogue::SwiGlu | Epilogue::GeGlu => {
            sums.iter().flat_map(|row| row.iter().zip(&row[width..]).map(gated)).collect()
        }
    };
    Ok(vec![Outcome::read(gpu, &y, want)?])
}

/// In tiles of one size.
fn multiply_tiles(gpu: &Gpu, dtype: DType, tile: Tile) -> Result<Vec<Outcome>> {
    let mut random = Random(9);
    let weights = Weights::random(gpu, dtype, &mut random)?;
    let (rows, width) = (ROWS[4], N as u32);
    let x = random.vec(rows * K);
    let (x_tensor, y) = (gpu.upload("x", &x)?, poisoned(gpu, &[], rows * N)?);
    let k_blocks = (K / BLOCK) as u32;
    let params =
        LinearParams { m: rows as u32, n: width, k_blocks, y_stride: width, ..Default::default() };
    for chunk in &weights.linear.chunks {
        let spec = matmul::spec(gpu.caps(), dtype, Epilogue::Store, tile);
        let op = gpu.op(&spec, &[&x_tensor, &x_tensor, &chunk.words, &chunk.scales, &y])?;
        submit(gpu, |commands| {
            matmul::record(commands, &op, tile, &params, 0);
            Ok(())
        })?;
    }
    let want = x.chunks(K).flat_map(|x| reference(&weights.values, x, None, HALVES)).collect();
    Ok(vec![Outcome::read(gpu, &y, want)?])
}

/// `W x` of one row of x, each within `tolerance` of what its terms add up to without their signs.
pub(super) fn reference(
    weights: &[f32],
    x: &[f32],
    gain: Option<&[f32]>,
    tolerance: f64,
) -> Vec<Near> {
    let x = normed(x, gain);
    let dot = |w: &[f32]| Near::sum(w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x), tolerance);
    weights.chunks(K).map(dot).collect()
}

/// x, normalised where there is a gain.
pub(super) fn normed(x: &[f32], gain: Option<&[f32]>) -> Vec<f64> {
    let scale = gain.map_or(1.0, |_| rms_scale(x, EPS));
    x.iter()
        .enumerate()
        .map(|(k, x)| f64::from(*x) * scale * gain.map_or(1.0, |g| g[k].into()))
        .collect()
}

fn gated((gate, up): (&Near, &Near)) -> Near {
    let value = silu(gate.value) * up.value;
    // |silu'| <= 1.1
    let moved = 1.1 * gate.bound * (up.value.abs() + up.bound) + silu(gate.value).abs() * up.bound;
    Near { value, bound: moved + 1e-5 * value.abs() }
}
