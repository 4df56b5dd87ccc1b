// q4_1 for half/nibbles.wgsl.
//fills halves
//import quant/half/nibbles
fn scale_offset(b: u32) -> vec2<f32> {
    return unpack2x16float(scales[b]);
}
