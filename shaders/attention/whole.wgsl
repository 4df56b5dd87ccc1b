// attention over all positions at once.
//fills stats
const SPLIT: u32 = 0u;
fn keep(at: u32, stat: vec2<f32>) {}
