// The B factors of all adapters, eight f16 an element; in front of them the directory, as in
// lora/a.wgsl, of (at, rank | MORE, weight, before). B is [N, rank]; the rows of the site's module
// number `which` meet elements before + which * rank.. of u.
//const LORA_B, LORA_ROWS, SITES, ENTRIES
@group(0) @binding(LORA_B) var<storage, read> lora_b: array<vec4<u32>>;

struct FactorB {
    at: u32,
    rank: u32,
    before: u32,
    next: u32,
}

fn factor_b(entry: vec4<u32>, next: u32) -> FactorB {
    return FactorB(entry.x, entry.y & 0x7fffffffu, entry.w,
        select(0u, next, entry.y >= 0x80000000u));
}

// The first of row m's set; `alone` is it when all rows have the same and no other: nothing is
// looked up then.
fn first_b(m: u32, site: u32, alone: vec4<u32>) -> FactorB {
    if alone.y > 0u { return factor_b(alone, 0u); }
    let i = LORA_ROWS / 4u + (lora_b[m / 4u][m % 4u] * SITES + site) * ENTRIES;
    return factor_b(lora_b[i], i + 1u);
}

fn next_b(f: FactorB) -> FactorB {
    if f.next == 0u { return FactorB(); }
    return factor_b(lora_b[f.next], f.next + 1u);
}

fn dot_b(eight: vec4<u32>, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), lo)
        + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), hi);
}
