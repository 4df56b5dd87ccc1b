// cross_entropy: loss[c] = weight[c] (lse(logits[c]) - logits[c, target[c]]); then logits become
// their own gradient,
//   weight[c] (softmax(logits[c]) - onehot(target[c])). In place: a second [C, V] would not fit.
//   0 targets  u32  read  [row0 + C]
//   1 weights  f32  read  [row0 + C]
//   2 logits   f32  read_write  [C, stride], of which V columns; any V
//   3 losses   f32  read_write  [loss0 + C]
// Grid: (C, 1, 1); L = WG = 256 lanes a row, which is read three times and written once. Needs:
// targets below V.
// Host: runtime/kernels/cross_entropy.rs    Oracle: tests/kernels/cross_entropy.rs
//import shared/reduce_workgroup
//const WG
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let base = group.x * p.stride;
    var top = -3.4e38;
    for (var v = index; v < p.vocab; v += WG) {
        top = max(top, logits[base + v]);
    }
    top = reduce_max(top, index);
    var sum = 0.0;
    for (var v = index; v < p.vocab; v += WG) {
        sum += exp(logits[base + v] - top);
    }
    sum = reduce_add(sum, index);
    let weight = weights[p.row0 + group.x];
    let target_id = min(targets[p.row0 + group.x], p.vocab - 1u);
    // The lane that will overwrite it has it read before.
    if index == target_id % WG {
        losses[p.loss0 + group.x] = weight * (top - logits[base + target_id] + log(sum));
    }
    let scale = weight / sum;
    for (var v = index; v < p.vocab; v += WG) {
        let d = exp(logits[base + v] - top) * scale;
        logits[base + v] = d - select(0.0, weight, v == target_id);
    }
}
