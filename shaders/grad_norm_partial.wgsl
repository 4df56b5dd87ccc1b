// grad_norm_partial: sums of squares of gradients, one a run of RUN elements
//   0 grads  f32  read  [offset + len]
//   1 partials  f32  read_write  [partial0 + ceil(len / RUN)]
// Grid: (ceil(len / RUN), 1, 1); L = WG = 256 lanes stride over a run and add up in a tree: the
// same order everywhere.
// Host: runtime/kernels/grad_norm.rs    Oracle: tests/kernels/grad_norm.rs
//import shared/reduce_workgroup
//const WG, RUN
@group(0) @binding(0) var<storage, read> grads: array<f32>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let end = min((group.x + 1u) * RUN, p.len);
    var sum = 0.0;
    for (var i = group.x * RUN + index; i < end; i += WG) {
        let g = grads[p.offset + i];
        sum += g * g;
    }
    sum = reduce_add(sum, index);
    if index == 0u {
        partials[p.partial0 + group.x] = sum;
    }
}
