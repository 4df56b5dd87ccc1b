// q2_1: w = d * q + m, 64 weights a block, q 2 bits, d and m f16.
//   words   1 vec4 a block, see two_bits.wgsl; as in the file
//   scales  one u32 a block: d low, m high
// Host: runtime/quant/q2_1.rs
//fills quant
//import quant/two_bits

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b of 32.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let q = codes(b, p);
    let dm = unpack2x16float(scales[b >> 1u]);
    return mat2x4<f32>(dm.x * q[0] + dm.y, dm.x * q[1] + dm.y);
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..], sum their sum. The
// minimum is added once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let q = codes(b, p);
    let dm = unpack2x16float(scales[b >> 1u]);
    return dm.x * (dot(q[0], lo) + dot(q[1], hi)) + dm.y * sum;
}
