// rms_norm: y[t] (=, +=) x[t] / sqrt(mean(x[t]^2) + eps) * gain
//   Zhang & Sennrich 2019, arXiv:1910.07467
//   0 x  f32  read  [T, K]
//   1 gain  f32  read  [K]
//   2 y  f32  read_write  [T, K]
// ADD 0: y = .  1: y += .
// Grid: (ceil(T / (WG / L)), 1, 1); L lanes a row stride over K. Needs: K a multiple of 4.
// Host: runtime/kernels/rms_norm.rs    Oracle: tests/kernels/rms_norm.rs
//needs reduce
//const WG, L, ADD
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % L;
    let row = group.x * (WG / L) + index / L;
    let base = min(row, p.rows - 1u) * p.k4;
    var squares = 0.0;
    for (var i = lane; i < p.k4; i += L) {
        let v = x[base + i];
        squares += dot(v, v);
    }
    let scale = 1.0 / sqrt(reduce_add(squares, index) / f32(4u * p.k4) + p.eps);
    if row < p.rows {
        for (var i = lane; i < p.k4; i += L) {
            let v = x[base + i] * scale * gain[i];
            if ADD == 1u {
                y[base + i] += v;
            } else {
                y[base + i] = v;
            }
        }
    }
}
