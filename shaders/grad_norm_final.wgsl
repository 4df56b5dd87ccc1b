// grad_norm_final: norm = sqrt(sum of the partials)
//   0 partials  f32  read  [count]
//   1 norm  f32  read_write  [slot + 1]
// Grid: (1, 1, 1); L = WG = 256 lanes. A NaN or an infinite gradient makes the norm one.
// Host: runtime/kernels/grad_norm.rs    Oracle: tests/kernels/grad_norm.rs
//import shared/reduce_workgroup
//const WG
@group(0) @binding(0) var<storage, read> partials: array<f32>;
@group(0) @binding(1) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) index: u32) {
    var sum = 0.0;
    for (var i = index; i < p.count; i += WG) {
        sum += partials[i];
    }
    sum = reduce_add(sum, index);
    if index == 0u {
        norm[p.slot] = sqrt(sum);
    }
}
