// attention over all positions at once.
fn keep(at: u32, stat: vec2<f32>) {}
