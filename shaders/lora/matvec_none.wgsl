// matvec where no adapter is active.
//fills adapters
fn shrinks(group: u32) -> bool { return false; }
fn shrink(group: vec3<u32>, index: u32) {}
fn expand(c: u32, m: u32, rows: vec4<u32>, lane: u32) {}
