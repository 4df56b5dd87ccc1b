// Joined where no adapter is active.
//fills shrink_tile
struct Share {
    alone: vec4<u32>,
    site: u32,
    part: u32,
    u_width: u32,
    column: u32,
    count: u32,
    k8s: u32,
}
struct Eights {
    unused: u32,
}
fn tile_put(i: u32, v: f32) {}
fn shrink_ahead(m: u32, s: Share, index: u32) -> Eights { return Eights(); }
fn shrink_tile(m: u32, s: Share, ahead: Eights, index: u32) {}
