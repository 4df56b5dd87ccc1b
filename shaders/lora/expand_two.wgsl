// Joined with an elementwise kernel that reads y = W x: what B u adds to elements n.x and n.y of
// row m, which belong to the site's modules which.x and which.y. Two, so that their loads are under
// way together.
//fills expand_two
//import lora/b
//const LORA_U
@group(0) @binding(LORA_U) var<storage, read> lora_u: array<vec4<f32>>; // [M, u_width]

fn expand_two(
    m: u32, site: u32, alone: vec4<u32>, u_width: u32, which: vec2<u32>, n: vec2<u32>,
) -> vec2<f32> {
    var sum = vec2<f32>(0.0);
    for (var f = first_b(m, site, alone); f.rank > 0u; f = next_b(f)) {
        let eights = f.rank / 8u;
        let b = vec2<u32>(f.at) + n * eights;
        let u = (vec2<u32>(m * u_width + f.before) + which * f.rank) / 4u;
        for (var i = 0u; i < eights; i += 2u) {
            let j = min(i + 1u, eights - 1u);
            let one = vec2<f32>(eight(b.x + i, u.x + 2u * i), eight(b.y + i, u.y + 2u * i));
            let other = vec2<f32>(eight(b.x + j, u.x + 2u * j), eight(b.y + j, u.y + 2u * j));
            sum += one + select(vec2<f32>(0.0), other, j > i);
        }
    }
    return sum;
}

fn eight(b: u32, u: u32) -> f32 {
    return dot_b(lora_b[b], lora_u[u], lora_u[u + 1u]);
}
