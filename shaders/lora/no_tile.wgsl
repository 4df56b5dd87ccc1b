// Joined where no adapter is active.
struct Share {
    site: u32,
    part: u32,
    u_rows: u32,
    column: u32,
    count: u32,
    k4s: u32,
}
fn tile_put(i: u32, v: f32) {}
fn shrink_tile(m: u32, s: Share, index: u32) {}
