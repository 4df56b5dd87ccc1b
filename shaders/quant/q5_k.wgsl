// q5_k: w = (d * sc) * q - dmin * m, 32 weights a block, 8 blocks a superblock, q 5 bits, sc and m
// 6 bits, d and dmin f16.
//   words   1 vec4 a block, the lower 4 bits: byte j holds weight j (low) and j + 16 (high)
//   scales  12 u32 a superblock: 4 as in k_scales.wgsl, then 32 bytes, bit j of byte i the fifth of
//     weight i of block j
// Host: runtime/quant/q5_k.rs
//fills quant
//import quant/k_scales, quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let i = 12u * (b >> 3u);
    let j = b & 7u;
    let w = words[b][p];
    let dm = block_scales(b, i);
    let l = ((scales[i + 4u + p] >> j) & 0x01010101u) << 4u;
    let h = ((scales[i + 8u + p] >> j) & 0x01010101u) << 4u;
    return mat2x4<f32>(
        dm.x * vec4<f32>(unpack4xU8((w & 0x0f0f0f0fu) | l)) - dm.y,
        dm.x * vec4<f32>(unpack4xU8(((w >> 4u) & 0x0f0f0f0fu) | h)) - dm.y,
    );
}
