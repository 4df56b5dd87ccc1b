// dy in single elements.
//fills dy
@group(0) @binding(0) var<storage, read> dy: array<f32>;

// Columns n.. of the line that begins at `row`; zeros behind its end.
fn four_of_dy(row: u32, n: u32) -> vec4<f32> {
    let columns = n + vec4<u32>(0u, 1u, 2u, 3u);
    let at = row + min(columns, vec4<u32>(p.n - 1u));
    let v = vec4<f32>(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
    return select(vec4<f32>(), v, columns < vec4<u32>(p.n));
}
