// Nibbles with a scale and an offset in f16 for cooperative matrices: 1024 + q has q in its lowest
// bits. Rounded once, at the end. Joined with scale_offset. Few registers are taken while a block
// is on its way.

// A block.
struct Fetched {
    words: vec4<u32>,
    scale_offset: vec2<f32>,
}

fn fetch(b: u32) -> Fetched {
    return Fetched(words[b], scale_offset(b));
}

// The lowest nibbles of w's halves.
fn two(w: u32) -> vec2<f32> {
    return unpack2x16float((w & 0x000f000fu) | 0x64006400u) - 1024.0;
}

// Weights 4p..4p+3 and 16+4p..16+4p+3.
fn halves(f: Fetched, p: u32) -> Halves {
    let w = f.words[p];
    let l = vec4<f32>(two(w), two(w >> 8u)).xzyw;
    let h = vec4<f32>(two(w >> 4u), two(w >> 12u)).xzyw;
    return Halves(
        vec4<f16>(f.scale_offset.x * l + f.scale_offset.y),
        vec4<f16>(f.scale_offset.x * h + f.scale_offset.y),
    );
}
