// Dot product of those weights with x through dequant, for formats without a faster way.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let w = dequant(b, p);
    return dot(w[0], lo) + dot(w[1], hi);
}
