// Weights in f16 for cooperative matrices, for formats without a faster way: dequantised when they
// are fetched.
//fills halves
//needs quant

// A block.
struct Fetched {
    p0: Halves,
    p1: Halves,
    p2: Halves,
    p3: Halves,
}

fn fetch(b: u32) -> Fetched {
    return Fetched(rounded(dequant(b, 0u)), rounded(dequant(b, 1u)), rounded(dequant(b, 2u)),
        rounded(dequant(b, 3u)));
}

fn rounded(w: mat2x4<f32>) -> Halves {
    return Halves(vec4<f16>(w[0]), vec4<f16>(w[1]));
}

// Weights 4p..4p+3 and 16+4p..16+4p+3.
fn halves(f: Fetched, p: u32) -> Halves {
    switch p {
        case 0u: { return f.p0; }
        case 1u: { return f.p1; }
        case 2u: { return f.p2; }
        default: { return f.p3; }
    }
}
