// A fragment of sums to memory, through its subgroup's patch of workgroup memory, since it may hang
// over the edge: the kernel's `put` stores what lies inside. WG: 4 subgroups.
//needs fragments
//const WG
var<workgroup> edge: array<f32, 4u * S * S>;

fn store(c: coop_c, subgroup: u32, lane: u32, row0: u32, column0: u32) {
    let base = subgroup * S * S;
    workgroupBarrier();
    coopStoreT(c, &edge[base], S);
    workgroupBarrier();
    for (var e = lane; e < S * S; e += WG / 4u) {
        put(row0 + e / S, column0 + e % S, edge[base + e]);
    }
}
