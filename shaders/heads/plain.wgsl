// q, k and v as their linears made them.
//fills head_input
fn head_input(v: vec2<f32>, head: u32, pair: vec2<u32>, index: u32) -> vec2<f32> {
    return v;
}
