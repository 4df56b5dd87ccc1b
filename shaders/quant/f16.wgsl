// f16: plain weights, 32 a block.
//   words   4 vec4 a block, 8 weights each, as in the file
//   scales  none
// Host: runtime/quant/f16.rs
//fills quant
//import quant/dot_generic

fn from_f16(w: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}

// Weights 4p..4p+3 and 16+4p..16+4p+3 of block b.
fn dequant(b: u32, p: u32) -> mat2x4<f32> {
    let i = 4u * b + (p >> 1u);
    let odd = (p & 1u) == 1u;
    let l = words[i];
    let h = words[i + 2u];
    return mat2x4<f32>(from_f16(select(l.xy, l.zw, odd)), from_f16(select(h.xy, h.zw, odd)));
}
