// gather_rows: y[i] = x[index[i]], or 0 where index[i] is NONE. With the inverse index it is its
// own gradient.
//   0 index  u32  read  [index0 + N]
//   1 x  f32  read  [x_row + .., K]
//   2 y  f32  read_write  [y_row + N, K]
// Grid: (ceil(K / 4 / 64), N, 1). Needs: K a multiple of 4.
// Host: runtime/kernels/gather_rows.rs    Oracle: tests/kernels/gather_rows.rs
//const NONE
@group(0) @binding(0) var<storage, read> index: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.k4 {
        return;
    }
    let row = index[p.index0 + id.y];
    var v = vec4<f32>(0.0);
    if row != NONE {
        v = x[(p.x_row + row) * p.k4 + id.x];
    }
    y[(p.y_row + id.y) * p.k4 + id.x] = v;
}
