// Codes of 4 bits that stand for levels: joined with levels and block_scale.

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b at a scale of 1.
fn unscaled(b: u32, p: u32) -> mat2x4<f32> {
    let w = words[b][p];
    return mat2x4<f32>(levels(unpack4xU8(w & 0x0f0f0f0fu)),
        levels(unpack4xU8((w >> 4u) & 0x0f0f0f0fu)));
}

fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    return block_scale(b) * unscaled(b, p);
}

// Dot product of those weights with x: lo holds x[4p..4p+4], hi x[16+4p..]. Scaled once.
fn dot_part(b: u32, p: u32, lo: vec4<f32>, hi: vec4<f32>, sum: f32) -> f32 {
    let w = unscaled(b, p);
    return block_scale(b) * (dot(w[0], lo) + dot(w[1], hi));
}
