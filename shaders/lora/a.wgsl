// The A factors of all adapters, f16 in pairs of words; in front of them the directory: who uses what.
//   row m's set: word m; then from LORA_ROWS words on [set][SITES][ENTRIES] of (at, rows), (weight, before).
// An entry's rows of A start at pair `at` and make elements before.. of u; the first entry without rows ends the list.
// Host: runtime/adapter/directory.rs
@group(0) @binding(LORA_A) var<storage, read> lora_a: array<vec2<u32>>;

struct FactorA {
    at: u32,
    rows: u32,
    weight: f32,
    before: u32,
}

fn factor_a(m: u32, site: u32, entry: u32) -> FactorA {
    let used = lora_a[m / 2u][m % 2u];
    let i = LORA_ROWS / 2u + ((used * SITES + site) * ENTRIES + entry) * 2u;
    return FactorA(lora_a[i].x, lora_a[i].y, bitcast<f32>(lora_a[i + 1u].x), lora_a[i + 1u].y);
}

fn four_of_a(i: u32) -> vec4<f32> {
    let pair = lora_a[i];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
