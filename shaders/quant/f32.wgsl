// f32: plain weights, 32 a block.
//   words   8 vec4 a block, 4 weights each, as in the file
//   scales  none
// Host: runtime/quant/f32.rs
//fills quant
//import quant/dot_generic

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    return mat2x4<f32>(bitcast<vec4<f32>>(words[8u * b + p]),
        bitcast<vec4<f32>>(words[8u * b + 4u + p]));
}
