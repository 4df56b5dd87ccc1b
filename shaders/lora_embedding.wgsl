// lora_embedding: x[t, n] += scale * weight * sum_i B[n, i] A[token_ids[t], i]
//   for every row's own adapters
//   0 token_ids  u32  read  [T]
//   1 x  f32  read_write  [T, D]
//   LORA_A  the A factors, here [V, rank]
//   LORA_B  the B factors, [D, rank]
// Grid: (ceil(D / 64), T, 1).
// Host: runtime/kernels/lora.rs    Oracle: tests/kernels/lora.rs
//import lora/a, lora/b
@group(0) @binding(0) var<storage, read> token_ids: array<u32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.d {
        return;
    }
    var sum = 0.0;
    var b = first_b(id.y, p.site, vec4<u32>(0u));
    for (var a = first_a(id.y, p.site, vec4<u32>(0u)); a.rows > 0u; a = next_a(a)) {
        let eights = b.rank / 8u;
        var part = 0.0;
        for (var i = 0u; i < eights; i++) {
            let eight = lora_b[b.at + id.x * eights + i];
            let lo = vec4<f32>(unpack2x16float(eight.x), unpack2x16float(eight.y));
            let hi = vec4<f32>(unpack2x16float(eight.z), unpack2x16float(eight.w));
            part += dot_a(lora_a[a.at + token_ids[id.y] * eights + i], lo, hi);
        }
        sum += a.weight * part;
        b = next_b(b);
    }
    x[id.y * p.d + id.x] += p.scale * sum;
}
