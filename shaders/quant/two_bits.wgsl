// Codes 4p..4p+3 and 16+4p..16+4p+3 of block b, of 2 bits: a vec4 holds two blocks, and bits 2p of
// byte i of a block's first word are those of weight 4p + i, of its second word of 16 + 4p + i.
fn codes(b: u32, p: u32) -> mat2x4<f32> {
    let w = words[b >> 1u];
    let q = (select(w.xy, w.zw, (b & 1u) == 1u) >> vec2<u32>(2u * p)) & vec2<u32>(0x03030303u);
    return mat2x4<f32>(vec4<f32>(unpack4xU8(q.x)), vec4<f32>(unpack4xU8(q.y)));
}
