// q3_k: w = (d * sc) * (q - 4), 32 weights a block, 8 blocks a superblock, q 3 bits, sc 6 bits for
// 16 weights, d f16.
//   words   4 vec4 a superblock, the lower 2 bits, see two_bits.wgsl
//   scales  25 u32 for 2 superblocks: their two d, then for each the bytes of 16 sc + 32, and 32
//     bytes: bit j of byte i the third of weight i of block j
// Host: runtime/quant/q3_k.rs
//fills quant
//import quant/two_bits, quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let pair = 25u * (b >> 4u);
    let odd = (b >> 3u) & 1u;
    let i = pair + 1u + 12u * odd;
    let j = b & 7u;
    let sc = vec4<f32>(unpack4xU8(scales[i + (j >> 1u)] >> ((j & 1u) << 4u))).xy - 32.0;
    let d = unpack2x16float(scales[pair] >> (odd << 4u)).x * sc;
    let l = vec4<f32>(unpack4xU8(((scales[i + 4u + p] >> j) & 0x01010101u) << 2u)) - 4.0;
    let h = vec4<f32>(unpack4xU8(((scales[i + 8u + p] >> j) & 0x01010101u) << 2u)) - 4.0;
    let q = codes(b, p);
    return mat2x4<f32>(d.x * (q[0] + l), d.y * (q[1] + h));
}
