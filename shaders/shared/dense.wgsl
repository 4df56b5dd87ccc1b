// What the variants of matmul_dense share: C[m, n] = beta C[m, n] + alpha sum_k A(m, k) B(k, n),
// see their headers.
struct Params {
    m: u32,
    n: u32,
    k: u32,
    a_offset: u32,
    a_m: u32,
    a_k: u32,
    b_offset: u32,
    b_k: u32,
    b_n: u32,
    c_offset: u32,
    c_m: u32,
    alpha: f32,
    beta: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

fn store(m: u32, n: u32, sum: f32) {
    if m < p.m && n < p.n {
        let at = p.c_offset + m * p.c_m + n;
        if p.beta == 0.0 {
            c[at] = p.alpha * sum;
        } else {
            c[at] = p.beta * c[at] + p.alpha * sum;
        }
    }
}
