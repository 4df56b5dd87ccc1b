// q3_0: w = d * (q - 4), 64 weights a block, q 3 bits, d f16.
//   words   1 vec4 a block, the lower 2 bits, see two_bits.wgsl; as in the file
//   scales  5 u32 for 2 blocks: their two d, then for each 32 weights their upper bits, bit j that
//     of weight j
// Host: runtime/quant/q3_0.rs
//fills quant
//import quant/two_bits, quant/fifth_bits, quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b of 32.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let i = 5u * (b >> 2u);
    let d = unpack2x16float(scales[i] >> ((b & 2u) << 3u)).x;
    let upper = scales[i + 1u + (b & 3u)] >> (4u * p);
    let l = vec4<f32>(unpack4xU8(fifth_bits(upper) >> 2u)) - 4.0;
    let h = vec4<f32>(unpack4xU8(fifth_bits(upper >> 16u) >> 2u)) - 4.0;
    let q = codes(b, p);
    return mat2x4<f32>(d * (q[0] + l), d * (q[1] + h));
}
