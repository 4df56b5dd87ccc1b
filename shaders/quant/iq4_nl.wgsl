// iq4_nl: w = d * v, 32 weights a block, v one of 16 levels, d f16.
//   words   1 vec4 a block: byte j holds weight j (low) and j + 16 (high), as in the file
//   scales  two f16 d a u32: block b is half b & 1 of scales[b >> 1]
// Host: runtime/quant/iq4_nl.rs
//fills quant
//import quant/by_level

fn block_scale(b: u32) -> f32 {
    return unpack2x16float(scales[b >> 1u] >> ((b & 1u) << 4u)).x;
}

// The levels of four codes, by halves, since drivers keep a table that is indexed in memory.
fn levels(q: vec4<u32>) -> vec4<f32> {
    let b0 = (q & vec4<u32>(1u)) != vec4<u32>();
    let b1 = (q & vec4<u32>(2u)) != vec4<u32>();
    let b2 = (q & vec4<u32>(4u)) != vec4<u32>();
    let b3 = (q & vec4<u32>(8u)) != vec4<u32>();
    let l0 = select(vec4<f32>(-127.0), vec4<f32>(-104.0), b0);
    let l1 = select(vec4<f32>(-83.0), vec4<f32>(-65.0), b0);
    let l2 = select(vec4<f32>(-49.0), vec4<f32>(-35.0), b0);
    let l3 = select(vec4<f32>(-22.0), vec4<f32>(-10.0), b0);
    let l4 = select(vec4<f32>(1.0), vec4<f32>(13.0), b0);
    let l5 = select(vec4<f32>(25.0), vec4<f32>(38.0), b0);
    let l6 = select(vec4<f32>(53.0), vec4<f32>(69.0), b0);
    let l7 = select(vec4<f32>(89.0), vec4<f32>(113.0), b0);
    let low = select(select(l0, l1, b1), select(l2, l3, b1), b2);
    let high = select(select(l4, l5, b1), select(l6, l7, b1), b2);
    return select(low, high, b3);
}
