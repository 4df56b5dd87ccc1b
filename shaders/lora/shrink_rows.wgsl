// Joined with what makes u[m, i] = weight * sum_k A[i, k] x[m, k].
//import lora/a
//const LORA_U
@group(0) @binding(LORA_U) var<storage, read_write> lora_u: array<f32>; // [M, u_width]

// Where row i of u's row m comes from.
fn factor_of(m: u32, site: u32, i: u32, alone: vec4<u32>) -> FactorA {
    for (var f = first_a(m, site, alone); f.rows > 0u; f = next_a(f)) {
        if i - f.before < f.rows { return f; }
    }
    return FactorA();
}
