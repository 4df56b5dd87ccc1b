// Joined where no adapter is active.
fn expand_row(m: u32, site: u32, which: u32, n: u32, u_rows: u32) -> f32 {
    return 0.0;
}
