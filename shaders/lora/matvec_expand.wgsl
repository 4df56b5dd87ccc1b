// matvec with B u in its sums, to begin with: what it loads has been used before the weights need
// the registers. u comes in parts from the kernel before. A lane takes eight elements of u, and
// every step-th part of them.
//fills adapters
//import shared/linear, lora/b
//const L, LORA_PARTS
// [M, parts, u_width]
@group(0) @binding(LORA_PARTS) var<storage, read> lora_parts: array<vec4<f32>>;

// Eight columns of B's four rows, and of what they meet the lane's first two parts: all under way
// together.
struct Loaded {
    f: FactorB,
    first: u32,
    u: u32,
    part: u32,
    step: u32,
    b0: vec4<u32>,
    b1: vec4<u32>,
    b2: vec4<u32>,
    b3: vec4<u32>,
    u0: vec4<f32>,
    u1: vec4<f32>,
    v0: vec4<f32>,
    v1: vec4<f32>,
}

fn shrinks(group: u32) -> bool { return false; }
fn shrink(group: vec3<u32>, index: u32) {}

// For the L eights from `first` on. Lanes with nothing to do load what others do: branches would
// wait for the loads.
fn load(m: u32, rows: vec4<u32>, f: FactorB, first: u32, lane: u32) -> Loaded {
    let eights = f.rank / 8u;
    let abreast = clamp(eights, 1u, L);
    let step = L / abreast;
    let eight = first + lane % abreast;
    let part = select(p.parts, lane / abreast, eight < eights && lane / abreast < step);
    let column = min(eight, max(eights, 1u) - 1u);
    let b = rows * eights + vec4<u32>(f.at + column);
    let u = (m * p.parts * p.u_width + f.before) / 4u + 2u * column;
    let u0 = u + min(part, p.parts - 1u) * p.u_width / 4u;
    let v0 = u + min(part + step, p.parts - 1u) * p.u_width / 4u;
    return Loaded(
        f, first, u, part, step, lora_b[b.x], lora_b[b.y], lora_b[b.z], lora_b[b.w],
        lora_parts[u0], lora_parts[u0 + 1u], lora_parts[v0], lora_parts[v0 + 1u]);
}

fn expand(c: u32, m: u32, rows: vec4<u32>, lane: u32) {
    var a = load(m, rows, first_b(m, p.site, p.alone), 0u, lane);
    while a.f.rank > 0u {
        let none = vec4<f32>(0.0);
        var lo = select(none, a.u0, a.part < p.parts)
            + select(none, a.v0, a.part + a.step < p.parts);
        var hi = select(none, a.u1, a.part < p.parts)
            + select(none, a.v1, a.part + a.step < p.parts);
        for (var part = a.part + 2u * a.step; part < p.parts; part += a.step) {
            lo += lora_parts[a.u + part * p.u_width / 4u];
            hi += lora_parts[a.u + part * p.u_width / 4u + 1u];
        }
        sums[c] += vec4<f32>(dot_b(a.b0, lo, hi), dot_b(a.b1, lo, hi), dot_b(a.b2, lo, hi),
            dot_b(a.b3, lo, hi));
        if a.first + L < a.f.rank / 8u {
            a = load(m, rows, a.f, a.first + L, lane);
        } else if a.f.next > 0u {
            a = load(m, rows, next_b(a.f), 0u, lane);
        } else {
            break;
        }
    }
}
