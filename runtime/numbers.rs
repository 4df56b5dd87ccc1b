//! How numbers are stored: what is left of one in each format, bit by bit.

use serde::Serialize;

/// Values of a block that share a scale: `QLoRA`'s.
const BLOCK: usize = 64;
/// Levels of `NF4` (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
pub(crate) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A format of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum NumberFormat {
    /// IEEE 754 binary32.
    Fp32,
    /// NVIDIA's, of which 19 bits count: 8 of exponent, 10 of mantissa. Stored in 32.
    Tf32,
    /// The upper half of an FP32.
    Bf16,
    /// IEEE 754 binary16.
    Fp16,
    /// OCP's 8 bits with 4 of exponent: no infinity, at most 448.
    Fp8E4m3,
    /// OCP's 8 bits with 5 of exponent, at most 57344.
    Fp8E5m2,
    /// OCP's 4 bits with 2 of exponent: eight sizes from 0 to 6.
    Fp4E2m1,
    /// Whole numbers to 127 and a scale a block: its largest over 127.
    Int8,
    /// Whole numbers to 7 and a scale a block: its largest over 7.
    Int4,
    /// `QLoRA`'s 16 levels, denser where a normal distribution is, and a block's largest.
    Nf4,
}

/// A number in a format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stored {
    /// The number itself.
    pub given: f64,
    /// Sign, exponent, mantissa, a space between; or a whole number's or level's bits.
    pub bits: String,
    /// What they stand for.
    pub value: f64,
    /// What whole numbers and levels are multiplied by; `None` for floats.
    pub scale: Option<f32>,
}

/// A float's layout.
#[derive(Clone, Copy)]
struct Float {
    exponent: u32,
    mantissa: u32,
    /// The largest number; what is beyond it becomes infinite, or this where that is not there.
    max: f64,
    saturates: bool,
}

impl NumberFormat {
    /// Every format, the widest first.
    pub const ALL: [Self; 10] = [
        Self::Fp32,
        Self::Tf32,
        Self::Bf16,
        Self::Fp16,
        Self::Fp8E4m3,
        Self::Fp8E5m2,
        Self::Int8,
        Self::Fp4E2m1,
        Self::Int4,
        Self::Nf4,
    ];

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Tf32 => "TF32",
            Self::Bf16 => "BF16",
            Self::Fp16 => "FP16",
            Self::Fp8E4m3 => "FP8 E4M3",
            Self::Fp8E5m2 => "FP8 E5M2",
            Self::Fp4E2m1 => "FP4 E2M1",
            Self::Int8 => "INT8",
            Self::Int4 => "INT4",
            Self::Nf4 => "NF4",
        }
    }

    /// Bits that a number takes in memory, scales apart.
    pub const fn n_bits(self) -> u32 {
        match self {
            Self::Fp32 | Self::Tf32 => 32,
            Self::Bf16 | Self::Fp16 => 16,
            Self::Fp8E4m3 | Self::Fp8E5m2 | Self::Int8 => 8,
            Self::Fp4E2m1 | Self::Int4 | Self::Nf4 => 4,
        }
    }

    /// Bits a number with its share of an FP32 scale for every 64.
    pub fn n_bits_with_scale(self) -> f64 {
        let scale = if self.float().is_none() { 32.0 / BLOCK as f64 } else { 0.0 };
        f64::from(self.n_bits()) + scale
    }

    /// The numbers as stored: rounded to the nearest, of two as near to the even one. Beyond the
    /// largest, FP32 to FP16 become infinite and the narrower ones stop there, as hardware does in
    /// its saturating mode. Every 64 numbers share a scale where there is one.
    pub fn store(self, values: &[f64]) -> Vec<Stored> {
        if let Some(float) = self.float() {
            return values.iter().map(|&value| float.store(value)).collect();
        }
        values.chunks(BLOCK).flat_map(|block| self.store_block(block)).collect()
    }

    const fn float(self) -> Option<Float> {
        let (exponent, mantissa, max, saturates) = match self {
            Self::Fp32 => (8, 23, f32::MAX as f64, false),
            Self::Tf32 => (8, 10, 3.401_162_134_214_653e38, false),
            Self::Bf16 => (8, 7, 3.389_531_389_251_535_5e38, false),
            Self::Fp16 => (5, 10, 65504.0, false),
            Self::Fp8E4m3 => (4, 3, 448.0, true),
            Self::Fp8E5m2 => (5, 2, 57344.0, true),
            Self::Fp4E2m1 => (2, 1, 6.0, true),
            Self::Int8 | Self::Int4 | Self::Nf4 => return None,
        };
        Some(Float { exponent, mantissa, max, saturates })
    }

    fn store_block(self, block: &[f64]) -> Vec<Stored> {
        let largest = block.iter().fold(0.0, |max: f64, v| max.max(v.abs())) as f32;
        let (most, width) = match self {
            Self::Int8 => (127.0, 8),
            Self::Int4 => (7.0, 4),
            _ => (1.0, 4),
        };
        let scale = largest / most;
        let unit = if scale > 0.0 { f64::from(scale) } else { 1.0 };
        let store = |&given: &f64| {
            let scaled = given / unit;
            let (code, level) = if self == Self::Nf4 {
                nearest(scaled)
            } else {
                let whole = scaled.round_ties_even().clamp(-f64::from(most), f64::from(most));
                (whole as i32 as u32, whole)
            };
            let bits = format!("{:0width$b}", code & ((1 << width) - 1));
            Stored { given, bits, value: level * f64::from(scale), scale: Some(scale) }
        };
        block.iter().map(store).collect()
    }
}

impl From<NumberFormat> for &'static str {
    fn from(format: NumberFormat) -> Self {
        format.name()
    }
}

/// The level next to a number, the lower of two, with its index.
fn nearest(scaled: f64) -> (u32, f64) {
    let distance = |level: f32| (f64::from(level) - scaled).abs();
    let mut best = 0;
    for (i, level) in NF4.iter().enumerate() {
        if distance(*level) < distance(NF4[best]) {
            best = i;
        }
    }
    (best as u32, f64::from(NF4[best]))
}

impl Float {
    fn store(self, given: f64) -> Stored {
        let Self { exponent, mantissa, max, saturates } = self;
        let all_ones = ((1_u64 << exponent) - 1) << mantissa;
        let rounded = self.round(given.abs());
        let (code, value) = match rounded {
            _ if given.is_nan() => (all_ones | ((1 << mantissa) - 1), f64::NAN),
            _ if rounded <= max => (self.code(rounded), rounded),
            _ if saturates => (self.code(max), max),
            _ => (all_ones, f64::INFINITY),
        };
        let sign = u8::from(given.is_sign_negative());
        let (e, m) = (code >> mantissa, code & ((1 << mantissa) - 1));
        let (ew, mw) = (exponent as usize, mantissa as usize);
        let bits = format!("{sign} {e:0ew$b} {m:0mw$b}");
        Stored { given, bits, value: value.copysign(given), scale: None }
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The exponent of a number's leading bit; below the smallest, numbers are evenly spaced.
    fn lead(self, size: f64) -> i32 {
        ((size.to_bits() >> 52) as i32 - 1023).max(1 - self.bias())
    }

    fn round(self, size: f64) -> f64 {
        let step = 2_f64.powi(self.lead(size) - self.mantissa as i32);
        (size / step).round_ties_even() * step
    }

    /// The code of a number that the format has: the exponent carries what the mantissa is over.
    fn code(self, value: f64) -> u64 {
        let lead = self.lead(value);
        let steps = value / 2_f64.powi(lead - self.mantissa as i32);
        ((((lead + self.bias()) as u64) << self.mantissa) + steps as u64) - (1 << self.mantissa)
    }
}
