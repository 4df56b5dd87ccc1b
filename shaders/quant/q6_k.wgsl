// q6_k: w = (d * sc) * (q - 32), 32 weights a block, 8 blocks a superblock, q 6 bits, sc a signed
// byte for 16 weights, d f16.
//   words   1 vec4 a block, the lower 4 bits: byte j holds weight j (low) and j + 16 (high)
//   scales  41 u32 for 2 superblocks: their two d, then for each 16 sc and 64 bytes of upper bits,
//     32 for 4 blocks:
//           bits 2r, 2r + 1 of byte i are those of weight i of block r
// Host: runtime/quant/q6_k.rs
//fills quant
//import quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let pair = 41u * (b >> 4u);
    let odd = (b >> 3u) & 1u;
    let i = pair + 1u + 20u * odd;
    let sc = unpack4xI8(scales[i + ((b >> 1u) & 3u)] >> ((b & 1u) << 4u)).xy;
    let d = unpack2x16float(scales[pair] >> (odd << 4u)).x * vec2<f32>(sc);
    let u = i + 4u + 8u * ((b >> 2u) & 1u) + p;
    let r = 2u * (b & 3u);
    let l = ((scales[u] >> r) & 0x03030303u) << 4u;
    let h = ((scales[u + 4u] >> r) & 0x03030303u) << 4u;
    let w = words[b][p];
    return mat2x4<f32>(
        d.x * (vec4<f32>(unpack4xU8((w & 0x0f0f0f0fu) | l)) - 32.0),
        d.y * (vec4<f32>(unpack4xU8(((w >> 4u) & 0x0f0f0f0fu) | h)) - 32.0),
    );
}
