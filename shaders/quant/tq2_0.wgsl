// tq2_0: w = d * (q - 1), 256 weights a block, q 2 bits, d f16.
//   words   4 vec4 a block, see two_bits.wgsl
//   scales  two f16 d a u32: that of 32 weights b is half (b >> 3) & 1 of scales[b >> 4]
// Host: runtime/quant/tq2_0.rs
//fills quant
//import quant/two_bits

fn block_scale(b: u32) -> f32 {
    return unpack2x16float(scales[b >> 4u] >> ((b & 8u) << 1u)).x;
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b of 32.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let q = codes(b, p);
    let d = block_scale(b);
    return mat2x4<f32>(d * (q[0] - 1.0), d * (q[1] - 1.0));
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..], sum their sum. The
// zero point is subtracted once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let q = codes(b, p);
    return block_scale(b) * (dot(q[0], lo) + dot(q[1], hi) - sum);
}
