// Joined with an elementwise kernel that reads y = W x: what B u adds to element n of row m.
@group(0) @binding(LORA_U) var<storage, read> lora_u: array<f32>; // [M, u_rows]

fn expand_row(m: u32, site: u32, which: u32, n: u32, u_rows: u32) -> f32 {
    var sum = 0.0;
    for (var entry = 0u; entry < ENTRIES; entry++) {
        let f = factor_b(m, site, entry);
        if f.rank == 0u { break; }
        let at = f.at + n * (f.rank / 4u);
        let u = m * u_rows + f.before + which * f.rank;
        for (var i = 0u; i < f.rank / 4u; i++) {
            let four = vec4<f32>(
                lora_u[u + 4u * i], lora_u[u + 4u * i + 1u], lora_u[u + 4u * i + 2u], lora_u[u + 4u * i + 3u]);
            sum += dot(four_of_b(at + i), four);
        }
    }
    return sum;
}
