// (d * sc, dmin * m) of block b, whose superblock's scales start at scales[i]: d low and dmin high;
// 8 lower nibbles of sc; 8 of m; the upper 2 bits of 8 sc (low half) and of 8 m (high half).
fn block_scales(b: u32, i: u32) -> vec2<f32> {
    let j = b & 7u;
    let upper = scales[i + 3u] >> (2u * j);
    let sc = ((scales[i + 1u] >> (4u * j)) & 15u) | ((upper << 4u) & 0x30u);
    let m = ((scales[i + 2u] >> (4u * j)) & 15u) | ((upper >> 12u) & 0x30u);
    return unpack2x16float(scales[i]) * vec2<f32>(f32(sc), f32(m));
}
