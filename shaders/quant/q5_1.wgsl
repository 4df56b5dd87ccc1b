// q5_1: w = d * q + m, 32 weights a block, q 5 bits, d and m f16.
//   words   1 vec4 a block, the lower 4 bits: byte j holds weight j (low) and j + 16 (high), as in
//     the file
//   scales  2 u32 a block: d low and m high, then the fifth bits, bit j that of weight j
// Host: runtime/quant/q5_1.rs
//fills quant
//import quant/fifth_bits, quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let dm = unpack2x16float(scales[2u * b]);
    let w = words[b][p];
    let h = scales[2u * b + 1u] >> (4u * p);
    return mat2x4<f32>(
        dm.x * vec4<f32>(unpack4xU8((w & 0x0f0f0f0fu) | fifth_bits(h))) + dm.y,
        dm.x * vec4<f32>(unpack4xU8(((w >> 4u) & 0x0f0f0f0fu) | fifth_bits(h >> 16u))) + dm.y,
    );
}
