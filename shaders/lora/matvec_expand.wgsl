// matvec with B u in its sums, to begin with: what it loads is then used before the weights need the registers. u comes
// in parts from the kernel before. A lane takes eight elements of u, and every step-th part of them.
@group(0) @binding(LORA_PARTS) var<storage, read> lora_parts: array<vec4<f32>>; // [M, parts, u_rows]

fn shrinks(group: u32) -> bool { return false; }
fn shrink(group: vec3<u32>, index: u32) {}

fn expand(c: u32, m: u32, rows: vec4<u32>, lane: u32) {
    for (var f = first_b(m, p.site, p.lora); f.rank > 0u; f = next_b(f)) {
        let eights = f.rank / 8u;
        let abreast = min(eights, L);
        let step = L / abreast;
        let part = select(p.parts, lane / abreast, lane / abreast < step);
        for (var eight = lane % abreast; eight < eights; eight += L) {
            let b = rows * eights + vec4<u32>(f.at + eight);
            let u = (m * p.parts * p.u_rows + f.before) / 4u + 2u * eight;
            sums[c] += products(b, u, part, step);
        }
    }
}

// Two parts at a time, past the end the last one: branches would wait for the loads.
fn products(b: vec4<u32>, u: u32, first: u32, step: u32) -> vec4<f32> {
    let b0 = lora_b[b.x];
    let b1 = lora_b[b.y];
    let b2 = lora_b[b.z];
    let b3 = lora_b[b.w];
    var lo = vec4<f32>(0.0);
    var hi = vec4<f32>(0.0);
    for (var part = first; part < p.parts; part += 2u * step) {
        let one = u + part * p.u_rows / 4u;
        let other = u + min(part + step, p.parts - 1u) * p.u_rows / 4u;
        let both = part + step < p.parts;
        lo += lora_parts[one] + select(vec4<f32>(0.0), lora_parts[other], both);
        hi += lora_parts[one + 1u] + select(vec4<f32>(0.0), lora_parts[other + 1u], both);
    }
    return vec4<f32>(dot_b(b0, lo, hi), dot_b(b1, lo, hi), dot_b(b2, lo, hi), dot_b(b3, lo, hi));
}
