
// Dot product of block b with x through dequant, for formats without a faster way. lo holds x[0..16], hi x[16..32].
fn dot_block(b: u32, lo: mat4x4<f32>, hi: mat4x4<f32>, sum: f32) -> f32 {
    let w0 = dequant(b, 0u);
    let w1 = dequant(b, 1u);
    let w2 = dequant(b, 2u);
    let w3 = dequant(b, 3u);
    return dot(w0[0], lo[0]) + dot(w0[1], hi[0])
        + dot(w1[0], lo[1]) + dot(w1[1], hi[1])
        + dot(w2[0], lo[2]) + dot(w2[1], hi[2])
        + dot(w3[0], lo[3]) + dot(w3[1], hi[3]);
}
