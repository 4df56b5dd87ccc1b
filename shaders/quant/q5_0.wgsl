// q5_0: w = d * (q - 16), 32 weights a block, q 5 bits, d f16.
//   words   1 vec4 a block, the lower 4 bits: byte j holds weight j (low) and j + 16 (high), as in
//     the file
//   scales  3 u32 for 2 blocks: their two d, then the fifth bits of each block, bit j that of
//     weight j
// Host: runtime/quant/q5_0.rs
//fills quant
//import quant/fifth_bits, quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let i = 3u * (b >> 1u);
    let odd = b & 1u;
    let d = unpack2x16float(scales[i] >> (odd << 4u)).x;
    let w = words[b][p];
    let h = scales[i + 1u + odd] >> (4u * p);
    return mat2x4<f32>(
        d * (vec4<f32>(unpack4xU8((w & 0x0f0f0f0fu) | fifth_bits(h))) - 16.0),
        d * (vec4<f32>(unpack4xU8(((w >> 4u) & 0x0f0f0f0fu) | fifth_bits(h >> 16u))) - 16.0),
    );
}
