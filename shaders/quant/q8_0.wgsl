// q8_0: w = d * q, 32 weights a block, q a signed byte, d f16.
//   words   2 vec4 a block, 16 weights each, as in the file
//   scales  two f16 d a u32: block b is half b & 1 of scales[b >> 1]
// Host: runtime/quant/q8_0.rs
//fills quant

fn block_scale(b: u32) -> f32 {
    return unpack2x16float(scales[b >> 1u] >> ((b & 1u) << 4u)).x;
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let d = block_scale(b);
    return mat2x4<f32>(
        d * vec4<f32>(unpack4xI8(words[2u * b][p])),
        d * vec4<f32>(unpack4xI8(words[2u * b + 1u][p])),
    );
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..].
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let s = dot(vec4<f32>(unpack4xI8(words[2u * b][p])), lo)
        + dot(vec4<f32>(unpack4xI8(words[2u * b + 1u][p])), hi);
    return block_scale(b) * s;
}
