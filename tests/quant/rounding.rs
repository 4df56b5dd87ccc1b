//! Weights to blocks: what rounding costs, beside other quantisers and beside the plain scale.

use std::ops::Range;

use epiphyte::DType;
use epiphyte::quant::{format, quantize};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::common::Random;

const FILE: &[u8] = include_bytes!("../golden/quantize.safetensors");

/// Other quantisers' inputs and blocks, see `tests/golden/quantize.py`.
struct Golden(SafeTensors<'static>);

impl Golden {
    fn load() -> Self {
        Self(SafeTensors::deserialize(FILE).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.0.tensor(name).unwrap().data();
        bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn blocks(&self, dtype: DType, kind: &str) -> Vec<u8> {
        self.0.tensor(&format!("{}.{kind}", dtype.name())).unwrap().data().to_vec()
    }
}

fn values(dtype: DType, blocks: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    format(dtype).dequantize(blocks, &mut values);
    values
}

/// The sum of squared errors, each times the importance of its column.
fn cost(weights: &[f32], values: &[f32], importance: Option<&[f32]>) -> f64 {
    let square = |(i, (w, v)): (usize, (&f32, &f32))| {
        let importance = importance.map_or(1.0, |row| f64::from(row[i % row.len()]));
        importance * (f64::from(*w) - f64::from(*v)).powi(2)
    };
    weights.iter().zip(values).enumerate().map(square).sum()
}

/// Types whose scales are searched for, one or two a block.
const SIMPLE: [DType; 4] = [DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1];
const K: [DType; 5] = [DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K];

#[test]
fn plain_formats_are_bit_equal_to_the_reference() {
    let golden = Golden::load();
    let weights = golden.floats("weights");
    for dtype in [DType::F16, DType::BF16] {
        let ours = quantize(dtype, &weights, None).unwrap();
        assert!(ours == golden.blocks(dtype, "blocks"), "{dtype:?}");
    }
    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(quantize(DType::F32, &weights, None).unwrap(), bytes);
}

#[test]
fn nf4_has_the_codes_of_bitsandbytes() {
    let golden = Golden::load();
    let weights = golden.floats("weights");
    let wanted = golden.0.tensor("NF4.codes").unwrap().data().to_vec();
    for (dtype, head) in [(DType::NF4, 2), (DType::NF4_DQ, 6)] {
        let blocks = quantize(dtype, &weights, None).unwrap();
        let nibbles = blocks.chunks(dtype.block_bytes()).flat_map(|block| &block[head..]);
        let nibbles: Vec<u8> = nibbles.copied().collect();
        let low_then_high = |bytes: &[u8; 16]| -> Vec<u8> {
            bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4)).collect()
        };
        let codes: Vec<u8> = nibbles.as_chunks().0.iter().flat_map(low_then_high).collect();
        assert!(codes == wanted, "{dtype:?}");
        // The scale is the largest weight, as the file can hold it.
        let values = values(dtype, &blocks, weights.len());
        let largest = |all: &[f32]| all.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        for (i, (block, values)) in weights.chunks(64).zip(values.chunks(64)).enumerate() {
            // Half a unit of f16; half a byte of 255, whose unit is an f16, too, or a small one.
            let off = match dtype {
                DType::NF4 => largest(block) / 2048.0,
                _ => {
                    let four = largest(&weights[i / 4 * 256..][..256]);
                    four * (0.5 / 255.0 + 1.0 / 1024.0) + 255.0 * f32::powi(2.0, -25)
                }
            };
            let (whole, held) = (largest(block), largest(values));
            assert!((whole - held).abs() <= off, "{dtype:?} {i}: {whole} and {held}");
        }
    }
}

#[test]
fn ternary_weights_are_held_exactly() {
    let mut random = Random::new(5);
    let weights: Vec<f32> = (0..512).map(|_| 0.375 * (random.below(3) as f32 - 1.0)).collect();
    for dtype in [DType::TQ2_0, DType::Q2_1] {
        let blocks = quantize(dtype, &weights, None).unwrap();
        assert_eq!(values(dtype, &blocks, 512), weights, "{dtype:?}");
    }
}

#[test]
fn no_block_costs_more_than_the_reference_quantiser_s() {
    let golden = Golden::load();
    let weights = golden.floats("weights");
    for dtype in SIMPLE.into_iter().chain([DType::Q8_0]) {
        let ours = values(dtype, &quantize(dtype, &weights, None).unwrap(), weights.len());
        let theirs = values(dtype, &golden.blocks(dtype, "blocks"), weights.len());
        let blocks = weights.chunks(32).zip(ours.chunks(32)).zip(theirs.chunks(32));
        for (i, ((weights, ours), theirs)) in blocks.enumerate() {
            let (ours, theirs) = (cost(weights, ours, None), cost(weights, theirs, None));
            assert!(ours <= theirs * (1.0 + 1e-5), "{dtype:?} block {i}: {ours} over {theirs}");
        }
        report(dtype, &weights, &ours, &theirs, None);
    }
}

#[test]
fn superblocks_cost_less_than_llama_cpp_s() {
    let golden = Golden::load();
    let weights = golden.floats("weights");
    for dtype in K.into_iter().chain([DType::IQ4_NL]) {
        let ours = values(dtype, &quantize(dtype, &weights, None).unwrap(), weights.len());
        let theirs = values(dtype, &golden.blocks(dtype, "blocks"), weights.len());
        let ratio = report(dtype, &weights, &ours, &theirs, None);
        assert!(ratio < 1.0, "{dtype:?}: {ratio}");
    }
}

#[test]
fn with_an_importance_they_cost_less_than_llama_cpp_s() {
    let golden = Golden::load();
    let (weights, importance) = (golden.floats("weights"), golden.floats("importance"));
    for dtype in SIMPLE.into_iter().chain(K).chain([DType::IQ4_NL]) {
        let ours = quantize(dtype, &weights, Some(&importance)).unwrap();
        let plain = quantize(dtype, &weights, None).unwrap();
        let [ours, plain] = [ours, plain].map(|blocks| values(dtype, &blocks, weights.len()));
        let theirs = values(dtype, &golden.blocks(dtype, "important"), weights.len());
        let ratio = report(dtype, &weights, &ours, &theirs, Some(&importance));
        assert!(ratio < 1.0, "{dtype:?}: {ratio}");
        let [ours, plain] = [ours, plain].map(|values| cost(&weights, &values, Some(&importance)));
        assert!(ours < 0.95 * plain, "{dtype:?}: an importance changes where errors are");
    }
}

/// Says and gives the costs' ratio, over each row relative to what zeros cost.
fn report(
    dtype: DType,
    weights: &[f32],
    ours: &[f32],
    theirs: &[f32],
    importance: Option<&[f32]>,
) -> f64 {
    const COLUMNS: usize = 512;
    let rows = |values: &[f32]| -> f64 {
        let rows = weights.chunks(COLUMNS).zip(values.chunks(COLUMNS));
        rows.map(|(weights, values)| {
            let all = cost(weights, &[0.0; COLUMNS], importance);
            if all == 0.0 { 0.0 } else { cost(weights, values, importance) / all }
        })
        .sum()
    };
    let ratio = rows(ours) / rows(theirs);
    println!("{dtype:?}: costs {ratio:.4} of the reference's");
    ratio
}

/// What a plain scale costs: the range of each block over the codes, scales in f64 and never
/// rounded.
fn plain_cost(dtype: DType, weights: &[f32]) -> f64 {
    let nearest = |w: f64, d: f64, m: f64, low: f64, high: f64| {
        let q = if d == 0.0 { 0.0 } else { ((w - m) / d).round().clamp(low, high) };
        (w - (d * q + m)).powi(2)
    };
    let block = |block: &[f32]| -> f64 {
        let wide = || block.iter().map(|&w| f64::from(w));
        let largest = wide().fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
        let (min, max) = (wide().fold(f64::MAX, f64::min), wide().fold(f64::MIN, f64::max));
        let sum = |d, m, low, high| wide().map(|w| nearest(w, d, m, low, high)).sum();
        match dtype {
            DType::Q4_0 => sum(largest / -8.0, 0.0, -8.0, 7.0),
            DType::Q5_0 => sum(largest / -16.0, 0.0, -16.0, 15.0),
            DType::Q3_K => sum(largest / -4.0, 0.0, -4.0, 3.0),
            DType::Q6_K => sum(largest / -32.0, 0.0, -32.0, 31.0),
            DType::Q8_0 => sum(largest / 127.0, 0.0, -127.0, 127.0),
            DType::Q4_1 => sum((max - min) / 15.0, min, 0.0, 15.0),
            DType::Q5_1 => sum((max - min) / 31.0, min, 0.0, 31.0),
            DType::Q2_K => sum((max.max(0.0) - min.min(0.0)) / 3.0, min.min(0.0), 0.0, 3.0),
            DType::Q4_K => sum((max.max(0.0) - min.min(0.0)) / 15.0, min.min(0.0), 0.0, 15.0),
            DType::Q5_K => sum((max.max(0.0) - min.min(0.0)) / 31.0, min.min(0.0), 0.0, 31.0),
            _ => 0.0,
        }
    };
    let parts_of_16 = [DType::Q2_K, DType::Q3_K, DType::Q6_K];
    let len = if parts_of_16.contains(&dtype) { 16 } else { 32 };
    weights.chunks(len).map(block).sum()
}

/// A superblock as models have it: its size is 2^exponent, some weights are far out.
fn superblock(exponents: Range<i32>) -> impl Strategy<Value = Vec<f32>> {
    (any::<u64>(), exponents, 0..4_u32).prop_map(|(seed, exponent, outliers)| {
        let mut random = Random::new(seed);
        let size = f32::powi(2.0, exponent);
        let mut weights: Vec<f32> =
            (0..256).map(|_| random.signed(size) + random.signed(size)).collect();
        for _ in 0..outliers {
            weights[random.below(256) as usize] = random.signed(16.0 * size);
        }
        weights
    })
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn a_search_costs_no_more_than_plain_scales() {
    proptest!(config(), |(weights in superblock(-8..4))| {
        for dtype in SIMPLE.into_iter().chain(K).chain([DType::Q8_0]) {
            let blocks = quantize(dtype, &weights, None).unwrap();
            prop_assert_eq!(Some(blocks.len()), dtype.bytes(weights.len()));
            let ours = cost(&weights, &values(dtype, &blocks, weights.len()), None);
            // Scales of the file are rounded: to 11 bits, which moves Q8_0's last code by 1 / 32
            // of a code, and to 6 or 8 bits of a superblock's.
            let rounded = if K.contains(&dtype) { 1.1 } else { 1.03 };
            let plain = plain_cost(dtype, &weights);
            prop_assert!(ours <= plain * rounded, "{:?}: {} over {}", dtype, ours, plain);
        }
    });
}

#[test]
fn codes_do_not_depend_on_the_unit() {
    // No scale leaves the normal halves, which all have the same number of bits.
    proptest!(config(), |(weights in superblock(0..2), by in -2..3_i32)| {
        let by = f32::powi(2.0, by);
        let scaled: Vec<f32> = weights.iter().map(|w| w * by).collect();
        for dtype in DType::ALL {
            let [a, b] = [&weights, &scaled].map(|weights| quantize(dtype, weights, None).unwrap());
            let (a, b) = (values(dtype, &a, 256), values(dtype, &b, 256));
            let exact = |(a, b): (&f32, &f32)| a * by == *b;
            prop_assert!(dtype == DType::F16 || a.iter().zip(&b).all(exact), "{:?}", dtype);
        }
    });
}

#[test]
fn every_row_has_the_same_importance() {
    let mut random = Random::new(3);
    let row: Vec<f32> = (0..256).map(|_| random.signed(0.1)).collect();
    let importance: Vec<f32> = (0..256).map(|_| random.signed(0.5) + 0.5).collect();
    for dtype in DType::ALL {
        let one = quantize(dtype, &row, Some(&importance)).unwrap();
        let two = quantize(dtype, &[&row[..], &row].concat(), Some(&importance)).unwrap();
        assert_eq!(two, [&one[..], &one].concat(), "{dtype:?}");
        // One that is the same everywhere, or nothing, is none too large or small.
        for flat in [vec![1e-20; 256], vec![1e20; 256], vec![0.0; 256]] {
            let blocks = quantize(dtype, &row, Some(&flat)).unwrap();
            let values = values(dtype, &blocks, 256);
            // Even weights: n levels leave 1 / n² of their square; at most twice that where large
            // ones cost up to twice as much. Where nothing costs anything the plain scale stays,
            // which leaves 1/4 for three levels, and a row of 256 is off from the mean by a tenth.
            let most = match dtype {
                DType::TQ2_0 => 1.0 / 9.0,
                DType::Q2_1 | DType::Q2_K => 1.0 / 16.0,
                _ => 0.02,
            };
            let all = cost(&row, &[0.0; 256], None);
            assert!(cost(&row, &values, None) < 2.5 * most * all, "{dtype:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for dtype in DType::ALL {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = vec![0.5; 256];
            weights[200] = odd;
            assert_eq!(quantize(dtype, &weights, None), None, "{dtype:?}");
        }
        let huge = quantize(dtype, &[f32::MAX; 256], None);
        assert_eq!(huge.is_some(), dtype == DType::F32, "{dtype:?}");
        let part = quantize(dtype, &vec![0.5; dtype.block_len() + 1], None);
        assert_eq!(part.is_none(), dtype.block_len() > 1, "{dtype:?}");
        let zeros = quantize(dtype, &[0.0; 256], None).unwrap();
        assert_eq!(values(dtype, &zeros, 256), [0.0; 256], "{dtype:?}");
    }
}
