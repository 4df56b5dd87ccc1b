// Joined with what makes u[m, i] = weight * sum_k A[i, k] x[m, k]: four rows of A at a time, K over L lanes.
@group(0) @binding(LORA_U) var<storage, read_write> lora_u: array<f32>; // [M, u_rows]

// Where rows i..i+3 of u's row m come from; ranks are multiples of 4.
fn rows_of_a(m: u32, site: u32, i: u32) -> FactorA {
    for (var entry = 0u; entry < ENTRIES; entry++) {
        let f = factor_a(m, site, entry);
        if f.rows == 0u { break; }
        if i - f.before < f.rows { return f; }
    }
    return FactorA();
}

// Columns 4 k4.. of rows i..i+3, times v.
fn four_rows(f: FactorA, i: u32, k4: u32, k4s: u32, v: vec4<f32>) -> vec4<f32> {
    let at = f.at + (i - f.before) * k4s + k4;
    return vec4<f32>(
        dot(four_of_a(at), v),
        dot(four_of_a(at + k4s), v),
        dot(four_of_a(at + 2u * k4s), v),
        dot(four_of_a(at + 3u * k4s), v),
    );
}

fn store_u(at: u32, v: vec4<f32>) {
    lora_u[at] = v.x;
    lora_u[at + 1u] = v.y;
    lora_u[at + 2u] = v.z;
    lora_u[at + 3u] = v.w;
}
