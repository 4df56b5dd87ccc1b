// row_exponents: exponents[m] = e with 2^(e - 127) <= max_n |dy[m, n]| < 2^(e - 126), as f32 stores
// it; at least 15, so that
//   2^(141 - e) and its inverse are both normal numbers
//   0 dy  f32  read  [., dy_stride], rows from dy_row, columns from dy_offset
//   1 exponents  u32  read_write  [M]
// Grid: (M, 1, 1); 256 lanes a row.
// Host: runtime/kernels/row_exponents.rs    Oracle: tests/kernels/row_exponents.rs
@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read_write> exponents: array<u32>;

const WG: u32 = 256u;
var<workgroup> tile: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let at = (p.dy_row + group.x) * p.dy_stride + p.dy_offset;
    var most = 0.0;
    // Four at a time, so that their loads are under way together.
    for (var n = index; n < p.n; n += 4u * WG) {
        let i = min(vec4<u32>(n, n + WG, n + 2u * WG, n + 3u * WG), vec4<u32>(p.n - 1u)) + at;
        let v = abs(vec4<f32>(dy[i.x], dy[i.y], dy[i.z], dy[i.w]));
        most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
    }
    tile[index] = most;
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index < step { tile[index] = max(tile[index], tile[index + step]); }
    }
    if index == 0u { exponents[group.x] = max(bitcast<u32>(tile[0]) >> 23u, 15u); }
}
