// bf16: plain weights, the upper halves of f32, 32 a block.
//   words   4 vec4 a block, 8 weights each, as in the file
//   scales  none
// Host: runtime/quant/bf16.rs
//fills quant
//import quant/dot_generic

fn from_bf16(w: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u,
        w.y & 0xffff0000u));
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let i = 4u * b + (p >> 1u);
    let odd = (p & 1u) == 1u;
    let l = words[i];
    let h = words[i + 2u];
    return mat2x4<f32>(from_bf16(select(l.xy, l.zw, odd)), from_bf16(select(h.xy, h.zw, odd)));
}
