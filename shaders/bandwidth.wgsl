// bandwidth: sums a large buffer: the device's own limit, which every figure is held against
//   0 data  u32  read  [N, 4]
//   1 sums  u32  read_write  [groups]
// Grid: any; lanes stride over the buffer.
// Host: runtime/kernels/bandwidth.rs
@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var sum = vec4<u32>(0u);
    var i = id.x;
    for (; i + 3u * p.stride < p.len; i += 4u * p.stride) {
        sum += data[i] + data[i + p.stride] + data[i + 2u * p.stride] + data[i + 3u * p.stride];
    }
    for (; i < p.len; i += p.stride) {
        sum += data[i];
    }
    sums[id.x] = sum.x + sum.y + sum.z + sum.w;
}
