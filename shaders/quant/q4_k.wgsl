// q4_k: w = (d * sc) * q - dmin * m, 32 weights a block, 8 blocks a superblock, q 4 bits, sc and m 6 bits, d and dmin f16.
//   words   1 vec4 a block: byte j holds weight j (low) and j + 16 (high)
//   scales  4 u32 a superblock, see k_scales.wgsl
// Host: runtime/quant/q4_k.rs

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let w = words[b][p];
    let dm = block_scales(b, 4u * (b >> 3u));
    return mat2x4<f32>(
        dm.x * vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - dm.y,
        dm.x * vec4<f32>(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)) - dm.y,
    );
}

// Dot product of block b with x: lo holds x[0..16], hi x[16..32], sum their sum. The minimum is subtracted once.
fn dot_block(b: u32, lo: mat4x4<f32>, hi: mat4x4<f32>, sum: f32) -> f32 {
    let w = words[b];
    let dm = block_scales(b, 4u * (b >> 3u));
    let l = w & vec4<u32>(0x0f0f0f0fu);
    let h = (w >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let s = dot(vec4<f32>(unpack4xU8(l.x)), lo[0]) + dot(vec4<f32>(unpack4xU8(h.x)), hi[0])
        + dot(vec4<f32>(unpack4xU8(l.y)), lo[1]) + dot(vec4<f32>(unpack4xU8(h.y)), hi[1])
        + dot(vec4<f32>(unpack4xU8(l.z)), lo[2]) + dot(vec4<f32>(unpack4xU8(h.z)), hi[2])
        + dot(vec4<f32>(unpack4xU8(l.w)), lo[3]) + dot(vec4<f32>(unpack4xU8(h.w)), hi[3]);
    return dm.x * s - dm.y * sum;
}
