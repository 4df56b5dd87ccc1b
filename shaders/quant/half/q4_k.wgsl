// q4_k for half/nibbles.wgsl.
//fills halves
//import quant/half/nibbles, quant/k_scales
fn scale_offset(b: u32) -> vec2<f32> {
    return block_scales(b, 4u * (b >> 3u)) * vec2<f32>(1.0, -1.0);
}
