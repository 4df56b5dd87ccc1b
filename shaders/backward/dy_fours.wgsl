// dy in fours: lines are, and begin at, a multiple of them.
//fills dy
@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;

// Columns n.. of the line that begins at `row`; zeros behind its end.
fn four_of_dy(row: u32, n: u32) -> vec4<f32> {
    let v = dy[(row + min(n, p.n - 4u)) / 4u];
    return select(vec4<f32>(), v, n < p.n);
}
