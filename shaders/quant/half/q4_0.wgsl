// q4_0 in f16 for cooperative matrices, without a conversion: 1024 + q has q in its lowest bits.
// Few registers are taken while a block is on its way.
//fills halves

// A block.
struct Fetched {
    words: vec4<u32>,
    scale: u32,
}

fn fetch(b: u32) -> Fetched {
    return Fetched(words[b], scales[b >> 1u] >> ((b & 1u) << 4u));
}

// The lowest nibbles of w's halves, less the zero point.
fn two(w: u32) -> vec2<f16> {
    return vec2<f16>(unpack2x16float((w & 0x000f000fu) | 0x64006400u)) - 1032.0h;
}

// Weights 4p..4p+3 and 16+4p..16+4p+3.
fn halves(f: Fetched, p: u32) -> Halves {
    let w = f.words[p];
    let d = f16(unpack2x16float(f.scale).x);
    let l = vec4<f16>(two(w), two(w >> 8u));
    let h = vec4<f16>(two(w >> 4u), two(w >> 12u));
    return Halves(d * l.xzyw, d * h.xzyw);
}
