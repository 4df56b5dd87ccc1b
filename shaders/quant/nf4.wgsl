// nf4: w = d * v, 64 weights a block, v one of 16 levels, d f16.
//   words   1 vec4 for 32 weights: byte j holds weight j (low) and j + 16 (high), as in the file
//   scales  two f16 d a u32, for 64 weights each
// Host: runtime/quant/nf4.rs
//fills quant
//import quant/nf4_levels, quant/by_level

fn block_scale(b: u32) -> f32 {
    return unpack2x16float(scales[b >> 2u] >> ((b & 2u) << 3u)).x;
}
