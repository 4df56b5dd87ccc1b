// q4_1: w = d * q + m, 32 weights a block, q 4 bits, d and m f16.
//   words   1 vec4 a block: byte j holds weight j (low) and j + 16 (high), as in the file
//   scales  one u32 a block: d low, m high
// Host: runtime/quant/q4_1.rs
//fills quant
//import quant/nibbles

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let w = words[b][p];
    let dm = unpack2x16float(scales[b]);
    return mat2x4<f32>(
        dm.x * vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) + dm.y,
        dm.x * vec4<f32>(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)) + dm.y,
    );
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..], sum their sum. The
// minimum is added once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let dm = unpack2x16float(scales[b]);
    let s = dot_nibbles(words[b][p], lo, hi);
    return dm.x * s + dm.y * sum;
}
