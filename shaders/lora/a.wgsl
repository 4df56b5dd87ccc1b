// The A factors of all adapters, eight f16 an element; in front of them the directory: who uses
// what.
//   row m's set: word m; then from word LORA_ROWS on [set][SITES][ENTRIES] of (at, rows | MORE,
//     weight, before).
// An entry's rows of A start at element `at` and make elements before.. of u. MORE: another entry
// of the set follows. An entry without rows is none. Ranks are multiples of 8.
// Host: runtime/kernels/lora.rs, runtime/adapter/registry.rs
//const LORA_A, LORA_ROWS, SITES, ENTRIES
@group(0) @binding(LORA_A) var<storage, read> lora_a: array<vec4<u32>>;

struct FactorA {
    at: u32,
    rows: u32,
    weight: f32,
    before: u32,
    next: u32,
}

fn factor_a(entry: vec4<u32>, next: u32) -> FactorA {
    return FactorA(entry.x, entry.y & 0x7fffffffu, bitcast<f32>(entry.z), entry.w,
        select(0u, next, entry.y >= 0x80000000u));
}

// The first of row m's set; `alone` is it when all rows have the same and no other: nothing is
// looked up then.
fn first_a(m: u32, site: u32, alone: vec4<u32>) -> FactorA {
    if alone.y > 0u { return factor_a(alone, 0u); }
    let i = LORA_ROWS / 4u + (lora_a[m / 4u][m % 4u] * SITES + site) * ENTRIES;
    return factor_a(lora_a[i], i + 1u);
}

fn next_a(f: FactorA) -> FactorA {
    if f.next == 0u { return FactorA(); }
    return factor_a(lora_a[f.next], f.next + 1u);
}

fn dot_a(eight: vec4<u32>, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    return dot(vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y)), lo)
        + dot(vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w)), hi);
}
