// q4_k: w = (d * sc) * q - dmin * m, 32 weights a block, 8 blocks a superblock, q 4 bits, sc and m
// 6 bits, d and dmin f16.
//   words   1 vec4 a block: byte j holds weight j (low) and j + 16 (high)
//   scales  4 u32 a superblock, see k_scales.wgsl
// Host: runtime/quant/q4_k.rs
//fills quant
//import quant/nibbles, quant/k_scales

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let w = words[b][p];
    let dm = block_scales(b, 4u * (b >> 3u));
    return mat2x4<f32>(
        dm.x * vec4<f32>(unpack4xU8(w & 0x0f0f0f0fu)) - dm.y,
        dm.x * vec4<f32>(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)) - dm.y,
    );
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..], sum their sum. The
// minimum is subtracted once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let dm = block_scales(b, 4u * (b >> 3u));
    let s = dot_nibbles(words[b][p], lo, hi);
    return dm.x * s - dm.y * sum;
}
