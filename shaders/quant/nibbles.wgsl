// Dot product of the 8 nibbles of w with x: those of the low halves of the bytes with lo, of the
// high halves with hi. The nibbles are left where they lie and x is scaled by the powers of two
// instead: exact, and no shifts.
fn dot_nibbles(w: u32, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    let l = vec4<f32>(vec4<u32>(w) & vec4<u32>(0x0000000fu, 0x00000f00u, 0x000f0000u, 0x0f000000u));
    let h = vec4<f32>(vec4<u32>(w) & vec4<u32>(0x000000f0u, 0x0000f000u, 0x00f00000u, 0xf0000000u));
    return dot(l, lo * vec4<f32>(1.0, 0x1p-8, 0x1p-16, 0x1p-24))
        + dot(h, hi * vec4<f32>(0x1p-4, 0x1p-12, 0x1p-20, 0x1p-28));
}
