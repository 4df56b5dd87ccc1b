//! The WGSL of every format: valid for any device, and `dequant` and `dot_part` equal to the CPU.

use epiphyte::DType;
use epiphyte::gpu::KernelSpec;
use epiphyte::quant::{BLOCK, format};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu::util::{BufferInitDescriptor, DeviceExt};

use super::{golden, repack};

/// One thread a block: its 32 weights, then its dot product with `x`.
const KERNEL: &str = "
@group(0) @binding(0) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) id: vec3<u32>) {
    let b = id.x;
    for (var p = 0u; p < 4u; p++) {
        let w = dequant(b, p);
        out[9u * b + p] = w[0];
        out[9u * b + 4u + p] = w[1];
    }
    var sum = 0.0;
    for (var p = 0u; p < 4u; p++) {
        let lo = x[8u * b + p];
        let hi = x[8u * b + 4u + p];
        sum += dot_part(b, p, lo, hi, dot(lo + hi, vec4<f32>(1.0)));
    }
    out[9u * b + 8u] = vec4<f32>(sum, scales_bound());
}
// Keeps the binding for formats that have no scales.
fn scales_bound() -> vec3<f32> {
    return vec3<f32>(f32(arrayLength(&scales)));
}
";

/// WebGPU's core has `unpack2x16float`; naga asks for it by name.
const CORE: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

fn source(dtype: DType) -> String {
    let spec = KernelSpec { name: format(dtype).wgsl(), ..Default::default() };
    spec.text(false).unwrap() + KERNEL
}

#[test]
fn every_shader_is_valid_on_any_device() {
    for dtype in DType::ALL {
        let source = source(dtype);
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
        let result = Validator::new(ValidationFlags::all(), CORE).validate(&module);
        result.unwrap_or_else(|e| panic!("{dtype:?}: {}", e.emit_to_string(&source)));
    }
}

#[test]
fn the_shaders_give_the_cpus_values() {
    let (device, queue) = device();
    for dtype in DType::ALL {
        let (blocks, weights) = golden::load(dtype);
        let x: Vec<f32> =
            (0..weights.len()).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect();
        let (words, mut scales) = repack(dtype, &blocks, 0);
        scales.resize(scales.len().max(1), 0);
        let inputs: [&[u8]; 3] =
            [bytemuck::cast_slice(&words), bytemuck::cast_slice(&scales), bytemuck::cast_slice(&x)];
        let out = run(&device, &queue, &source(dtype), inputs, weights.len() / BLOCK);
        let rows = out.as_chunks::<36>().0.iter().zip(weights.as_chunks().0).zip(x.as_chunks().0);
        for (b, ((out, weights), x)) in rows.enumerate() {
            check_block(&format!("{dtype:?} block {b}"), out, weights, x);
        }
    }
}

/// Every product of scales and code has at most 23 significant bits, so it is exact in f32; at most
/// one rounding follows, and WGSL rounds sums correctly. Hence the weights must be equal, fused or
/// not.
///
/// The dot product sums 64 terms (codes times x, and minimum or zero point times x) and scales
/// them: fewer than 80 roundings, in any order. 32 random codes span more than half their range, so
/// `|d q| <= 2 span`; the minimum or zero point is one weight minus such a term. Together they are
/// at most `4 span + max |w|`.
fn check_block(name: &str, out: &[f32; 36], weights: &[f32; BLOCK], x: &[f32; BLOCK]) {
    assert_eq!(out[..BLOCK], *weights, "{name}");
    let max = weights.iter().fold(f32::MIN, |a, b| a.max(*b));
    let min = weights.iter().fold(f32::MAX, |a, b| a.min(*b));
    let span = f64::from(max) - f64::from(min);
    let terms = 4.0 * span + f64::from(max.abs().max(min.abs()));
    let exact: f64 = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    let bound = 80.0 * f64::from(f32::EPSILON) / 2.0
        * terms
        * x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let error = (f64::from(out[BLOCK]) - exact).abs();
    assert!(error <= bound, "{name}: dot {} is not {exact}, bound {bound}", out[BLOCK]);
}

fn device() -> (wgpu::Device, wgpu::Queue) {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    pollster::block_on(async {
        let adapter =
            instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await.unwrap();
        adapter.request_device(&wgpu::DeviceDescriptor::default()).await.unwrap()
    })
}

/// Runs `source` with `blocks` workgroups; gives 9 vec4 a block.
fn run(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    source: &str,
    inputs: [&[u8]; 3],
    blocks: usize,
) -> Vec<f32> {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let buffer = |contents: &[u8], usage| {
        device.create_buffer_init(&BufferInitDescriptor {
            label: None,
            contents,
            usage: usage | wgpu::BufferUsages::STORAGE,
        })
    };
    let zeros = vec![0; blocks * 9 * 16];
    let out = buffer(&zeros, wgpu::BufferUsages::COPY_SRC);
    let mut buffers: Vec<wgpu::Buffer> =
        inputs.map(|bytes| buffer(bytes, wgpu::BufferUsages::empty())).into();
    buffers.push(out.clone());
    let entries = buffers.iter().zip(0..);
    let entries = entries
        .map(|(b, binding)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries.collect::<Vec<_>>(),
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(blocks as u32, 1, 1);
    drop(pass);
    queue.submit([encoder.finish()]);
    read(device, queue, &out)
}

fn read(device: &wgpu::Device, queue: &wgpu::Queue, buffer: &wgpu::Buffer) -> Vec<f32> {
    let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
    let host = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: buffer.size(),
        usage,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &host, 0, buffer.size());
    queue.submit([encoder.finish()]);
    host.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    host.get_mapped_range(..)
        .unwrap()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}
