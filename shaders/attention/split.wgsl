// attention over a part of the positions: what attention_reduce needs to join the parts.
//fills stats
const SPLIT: u32 = 1u;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;
fn keep(at: u32, stat: vec2<f32>) {
    stats[at] = stat;
}
