// q8_0 in f16 for cooperative matrices, without a conversion: 1024 + q + 128 has q + 128 in its
// lowest bits.
//fills halves

// A block.
struct Fetched {
    lo: vec4<u32>,
    hi: vec4<u32>,
    scale: u32,
}

fn fetch(b: u32) -> Fetched {
    return Fetched(words[2u * b], words[2u * b + 1u], scales[b >> 1u] >> ((b & 1u) << 4u));
}

// The lower bytes of w's halves, which are 128 too large.
fn two(w: u32) -> vec2<f16> {
    return vec2<f16>(unpack2x16float((w & 0x00ff00ffu) | 0x64006400u)) - 1152.0h;
}

fn four(w: u32) -> vec4<f16> {
    let q = w ^ 0x80808080u;
    return vec4<f16>(two(q), two(q >> 8u)).xzyw;
}

// Weights 4p..4p+3 and 16+4p..16+4p+3.
fn halves(f: Fetched, p: u32) -> Halves {
    let d = f16(unpack2x16float(f.scale).x);
    return Halves(d * four(f.lo[p]), d * four(f.hi[p]));
}
