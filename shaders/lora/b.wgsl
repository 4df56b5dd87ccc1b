// The B factors of all adapters, f16 in pairs of words; in front of them the directory, as in lora/a.wgsl, of
// (at, rank), (weight, before). B is [N, rank]; the rows of the site's module number `which` meet elements
// before + which * rank.. of u.
@group(0) @binding(LORA_B) var<storage, read> lora_b: array<vec2<u32>>;

struct FactorB {
    at: u32,
    rank: u32,
    before: u32,
}

fn factor_b(m: u32, site: u32, entry: u32) -> FactorB {
    let used = lora_b[m / 2u][m % 2u];
    let i = LORA_ROWS / 2u + ((used * SITES + site) * ENTRIES + entry) * 2u;
    return FactorB(lora_b[i].x, lora_b[i].y, lora_b[i + 1u].y);
}

fn four_of_b(i: u32) -> vec4<f32> {
    let pair = lora_b[i];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
