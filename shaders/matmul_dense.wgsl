// matmul_dense: C[m, n] = beta C[m, n] + alpha sum_k A(m, k) B(k, n)
//   for LoRA's factors and their gradients
// Grid: (ceil(N / TN), ceil(M / TM), 1); 256 lanes in SPLIT teams, each with all of the TM x TN
// tile, 4 x 4 a lane, and every SPLIT-th k. In steps of KT of K, a multiple of 8. The teams' sums
// are added in their order: the same every time. At most 16 KiB of
// workgroup memory: WebGPU's default limit. Sums in f32.
// Bindings and store: shared/dense.wgsl
// Host: runtime/kernels/matmul_dense.rs    Oracle: tests/kernels/matmul_dense.rs
//import shared/dense
//const TM, TN, KT

const SPLIT: u32 = 4096u / (TM * TN);
const TEAM: u32 = 256u / SPLIT;
// A row of the staged tiles, one for each k, with a vec4 of padding against bank conflicts.
const A_ROW: u32 = TM / 4u + 1u;
const B_ROW: u32 = TN / 4u + 1u;
const B_TILE: u32 = KT * A_ROW; // where that of B begins
// Then the teams' sums.
var<workgroup> tile: array<vec4<f32>, max(KT * (A_ROW + B_ROW), select(0u, 1024u, SPLIT > 1u))>;

// Element e of a tile with `width` rows or columns, as (k, which of them): neighbours take
// neighbouring addresses, 8 at a time along K where K is what lies side by side.
fn place(e: u32, width: u32, along_k: bool) -> vec2<u32> {
    if along_k {
        return vec2<u32>(e / (8u * width) * 8u + e % 8u, e / 8u % width);
    }
    return vec2<u32>(e / width, e % width);
}

fn stage(m0: u32, n0: u32, k0: u32, depth: u32, index: u32) {
    for (var e = index; e < depth * TM; e += 256u) {
        let at = place(e, TM, p.a_k == 1u);
        let v = a[p.a_offset + min(m0 + at.y, p.m - 1u) * p.a_m + min(k0 + at.x, p.k - 1u) * p.a_k];
        tile[at.x * A_ROW + at.y / 4u][at.y % 4u] = v;
    }
    for (var e = index; e < depth * TN; e += 256u) {
        let at = place(e, TN, p.b_k == 1u);
        let v = b[p.b_offset + min(k0 + at.x, p.k - 1u) * p.b_k + min(n0 + at.y, p.n - 1u) * p.b_n];
        tile[B_TILE + at.x * B_ROW + at.y / 4u][at.y % 4u] = v;
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m0 = group.y * TM;
    let n0 = group.x * TN;
    let team = index / TEAM;
    let tn = index % (TN / 4u);
    let tm = index % TEAM / (TN / 4u);
    var acc = mat4x4<f32>();
    for (var k0 = 0u; k0 < p.k; k0 += KT) {
        let steps = min(KT, p.k - k0);
        workgroupBarrier();
        stage(m0, n0, k0, (steps + 7u) / 8u * 8u, index);
        workgroupBarrier();
        for (var k = team; k < steps; k += SPLIT) {
            let x = tile[k * A_ROW + tm];
            let y = tile[B_TILE + k * B_ROW + tn];
            acc = mat4x4<f32>(
                acc[0] + x.x * y, acc[1] + x.y * y, acc[2] + x.z * y, acc[3] + x.w * y);
        }
    }
    if SPLIT > 1u {
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) { tile[index * 4u + i] = acc[i]; }
        workgroupBarrier();
        if team > 0u {
            return;
        }
        for (var t = 1u; t < SPLIT; t++) {
            let at = (t * TEAM + index) * 4u;
            acc += mat4x4<f32>(tile[at], tile[at + 1u], tile[at + 2u], tile[at + 3u]);
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            store(m0 + tm * 4u + i, n0 + tn * 4u + j, acc[i][j]);
        }
    }
}
