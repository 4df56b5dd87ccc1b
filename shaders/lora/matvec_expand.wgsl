// matvec with B u added to its sums before they are reduced; u comes in parts from the kernel before.
@group(0) @binding(LORA_PARTS) var<storage, read> lora_parts: array<f32>; // [M, parts, u_rows]

fn shrinks(group: u32) -> bool { return false; }
fn shrink(group: vec3<u32>, index: u32) {}

fn expand(c: u32, m: u32, rows: vec4<u32>, lane: u32) {
    for (var entry = 0u; entry < ENTRIES; entry++) {
        let f = factor_b(m, p.site, entry);
        if f.rank == 0u { break; }
        for (var i = lane; i < f.rank; i += L) {
            var u = 0.0;
            for (var part = 0u; part < p.parts; part++) {
                u += lora_parts[(m * p.parts + part) * p.u_rows + f.before + i];
            }
            let at = f.at + i / 4u;
            let b = rows * (f.rank / 4u) + vec4<u32>(at);
            sums[c] += u * vec4<f32>(
                four_of_b(b.x)[i % 4u], four_of_b(b.y)[i % 4u], four_of_b(b.z)[i % 4u], four_of_b(b.w)[i % 4u]);
        }
    }
}
