// q4_0: w = d * (q - 8), 32 weights a block, q 4 bits, d f16.
//   words   1 vec4 a block: byte j holds weight j (low) and j + 16 (high), as in the file
//   scales  two f16 d a u32: block b is half b & 1 of scales[b >> 1]
// Host: runtime/quant/q4_0.rs
//fills quant
//import quant/nibbles

fn block_scale(b: u32) -> f32 {
    return unpack2x16float(scales[b >> 1u] >> ((b & 1u) << 4u)).x;
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let w = words[b][p];
    let d = block_scale(b);
    return mat2x4<f32>(
        d * (vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - 8.0),
        d * (vec4<f32>(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)) - 8.0),
    );
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..], sum their sum. The zero
// point is subtracted once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let s = dot_nibbles(words[b][p], lo, hi);
    return block_scale(b) * (s - 8.0 * sum);
}
