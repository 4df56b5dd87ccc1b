// Joined where no adapter is active.
//fills expand_two
fn expand_two(
    m: u32, site: u32, alone: vec4<u32>, u_width: u32, which: vec2<u32>, n: vec2<u32>,
) -> vec2<f32> {
    return vec2<f32>(0.0);
}
