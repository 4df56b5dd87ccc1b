// q2_k: w = (d * sc) * q - dmin * m, 32 weights a block, 8 blocks a superblock, q 2 bits, sc and m 4
// bits for 16 weights, d and dmin f16.
//   words   4 vec4 a superblock, see two_bits.wgsl
//   scales  5 u32 a superblock: d low and dmin high, then 16 bytes of sc (low) and m (high), as in
//     the file
// Host: runtime/quant/q2_k.rs
//fills quant
//import quant/two_bits

// d * sc of the first and of the other 16 weights of block b, then dmin * m of both.
fn part_scales(b: u32) -> vec4<f32> {
    let i = 5u * (b >> 3u);
    let both = scales[i + 1u + ((b >> 1u) & 3u)] >> ((b & 1u) << 4u);
    let sc = unpack4xU8(both & 0x0f0fu).xy;
    let m = unpack4xU8((both >> 4u) & 0x0f0fu).xy;
    return unpack2x16float(scales[i]).xxyy * vec4<f32>(vec4<u32>(sc, m));
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let q = codes(b, p);
    let dm = part_scales(b);
    return mat2x4<f32>(dm.x * q[0] - dm.z, dm.y * q[1] - dm.w);
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..], sum their sum. Each
// minimum is subtracted once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let q = codes(b, p);
    let dm = part_scales(b);
    let first = dot(lo, vec4<f32>(1.0));
    return dm.x * dot(q[0], lo) + dm.y * dot(q[1], hi) - dm.z * first - dm.w * (sum - first);
}
