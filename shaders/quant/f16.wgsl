// f16: plain weights, 32 a block.
//   words   4 vec4 a block, 8 weights each, as in the file
//   scales  none
// Host: runtime/quant/f16.rs

fn from_f16(w: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let i = 4u * b + (p >> 1u);
    let odd = (p & 1u) == 1u;
    let l = words[i];
    let h = words[i + 2u];
    return mat2x4<f32>(from_f16(select(l.xy, l.zw, odd)), from_f16(select(h.xy, h.zw, odd)));
}

// Dot product of block b with x: lo holds x[0..16], hi x[16..32].
fn dot_block(b: u32, lo: mat4x4<f32>, hi: mat4x4<f32>, sum: f32) -> f32 {
    let w0 = words[4u * b];
    let w1 = words[4u * b + 1u];
    let w2 = words[4u * b + 2u];
    let w3 = words[4u * b + 3u];
    return dot(from_f16(w0.xy), lo[0]) + dot(from_f16(w0.zw), lo[1])
        + dot(from_f16(w1.xy), lo[2]) + dot(from_f16(w1.zw), lo[3])
        + dot(from_f16(w2.xy), hi[0]) + dot(from_f16(w2.zw), hi[1])
        + dot(from_f16(w3.xy), hi[2]) + dot(from_f16(w3.zw), hi[3]);
}
