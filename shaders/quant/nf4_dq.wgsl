// nf4_dq: w = (d * s) * v, 256 weights a block, v one of 16 levels, s a byte for 64 weights, d f16.
//   words   1 vec4 for 32 weights: byte j holds weight j (low) and j + 16 (high), as in the file
//   scales  3 u32 for 2 blocks: their two d, then the 4 s of each
// Host: runtime/quant/nf4_dq.rs
//fills quant
//import quant/nf4_levels, quant/by_level

fn block_scale(b: u32) -> f32 {
    let i = 3u * (b >> 4u);
    let odd = (b >> 3u) & 1u;
    let s = (scales[i + 1u + odd] >> ((b & 6u) << 2u)) & 255u;
    return unpack2x16float(scales[i] >> (odd << 4u)).x * f32(s);
}
