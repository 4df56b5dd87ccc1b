//! Compute pipelines: compiled once by their text, kept on disk between runs where the driver
//! allows it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::commands::{Commands, Ring};
use super::device::{Gpu, GpuOptions};
use super::fault::from_wgpu;
use super::known::{Known, replace};
use super::shader::KernelSpec;
use super::tensor::Tensor;
use crate::error::Result;
use crate::identity::{Hash, sha256};
use crate::parallel;
use crate::progress::{LoadPhase, Loading};

/// How a kernel touches one of its storage bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// A compiled kernel.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) params_bytes: u32,
    /// The stem of its shader.
    pub name: &'static str,
}

/// A kernel and what it works on.
#[derive(Clone, Debug)]
pub struct Op {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Its bindings.
    pub group: wgpu::BindGroup,
}

impl Op {
    /// Records it; see [`Commands::dispatch`].
    pub fn record(
        &self,
        commands: &mut Commands<'_>,
        params: &impl bytemuck::NoUninit,
        grid: [u32; 3],
        read_bytes: u64,
    ) {
        commands.dispatch(self, params, grid, read_bytes);
    }
}

/// The compiled kernels of a device.
pub(crate) struct Pipelines {
    compiled: Mutex<HashMap<Hash, Arc<Kernel>>>,
    /// One layout for each list of bindings, so that a bind group serves every kernel with that
    /// list.
    layouts: Mutex<HashMap<&'static [Access], wgpu::BindGroupLayout>>,
    disk: Option<(wgpu::PipelineCache, PathBuf)>,
    known: Known,
    changed: AtomicBool,
    /// Group 1 of the uniform ring.
    pub(crate) ring_layout: wgpu::BindGroupLayout,
    /// Rings that no recording holds.
    pub(crate) idle_rings: Mutex<Vec<Ring>>,
}

impl Pipelines {
    pub(crate) fn new(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        options: &GpuOptions,
    ) -> Self {
        let ring_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("params ring"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
                count: None,
            }],
        });
        let path = wgpu::util::pipeline_cache_key(info)
            .filter(|_| device.features().contains(wgpu::Features::PIPELINE_CACHE))
            .zip(options.cache_dir.as_ref())
            .map(|(key, dir)| dir.join(format!("{key}-{}.pipelines", env!("CARGO_PKG_VERSION"))));
        let mut known = Known::read(info, options);
        let disk = path.map(|path| {
            let data = std::fs::read(&path).ok();
            if data.is_none() {
                known.forget();
            }
            // SAFETY: the data is what `get_data` gave for this key, or the driver refuses it by
            // its own header; `fallback` then starts an empty cache.
            let cache = unsafe {
                device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                    label: Some("epiphyte"),
                    data: data.as_deref(),
                    fallback: true,
                })
            };
            (cache, path)
        });
        Self {
            compiled: Mutex::default(),
            layouts: Mutex::default(),
            disk,
            known,
            changed: AtomicBool::new(false),
            ring_layout,
            idle_rings: Mutex::default(),
        }
    }
}

impl Gpu {
    /// Compiles `spec`, or gives the kernel compiled before from the same text. Callable from many
    /// threads.
    ///
    /// Errors: [`crate::Error::Gpu`] with what the joiner, the compiler or the driver said; the
    /// device stays usable.
    pub fn kernel(&self, spec: &KernelSpec) -> Result<Arc<Kernel>> {
        let text = spec.text(self.caps().immediates)?;
        let key = sha256([&text]);
        let lock = || self.pipelines.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = lock().get(&key) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = Arc::new(self.compile(spec, &text)?);
        self.counters.pipelines.fetch_add(1, Ordering::Relaxed);
        if !self.pipelines.known.has(&key) {
            self.pipelines.changed.store(true, Ordering::Relaxed);
            self.counters.compiled.fetch_add(1, Ordering::Relaxed);
        }
        lock().insert(key, Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Compiles `specs`, a few at a time, of which `loading` hears. As [`Gpu::kernel`] finds them
    /// later.
    ///
    /// Errors: as [`Gpu::kernel`]; [`crate::Error::Cancelled`].
    pub(crate) fn compile_all(
        &self,
        specs: Vec<KernelSpec>,
        loading: &mut Loading<'_>,
    ) -> Result<()> {
        let mut texts = HashMap::new();
        for spec in specs {
            texts.insert(spec.text(self.caps().immediates)?, spec);
        }
        let specs: Vec<_> = texts.into_values().collect();
        let cancel = loading.cancel.clone();
        let compile = |spec: &KernelSpec| {
            cancel.check()?;
            self.kernel(spec).map(drop)
        };
        let compiled = parallel::map_reporting(&specs, compile, &mut |done| {
            loading.report(LoadPhase::Shaders, done as u64, specs.len() as u64);
        });
        compiled.into_iter().collect()
    }

    fn compile(&self, spec: &KernelSpec, text: &str) -> Result<Kernel> {
        let name = spec.name;
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let layout = self.group_layout(spec.bindings);
        let module = self.module(name, text);
        let immediate_size = if self.caps().immediates { spec.params.bytes } else { 0 };
        let groups = [Some(&layout), Some(&self.pipelines.ring_layout)];
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: if self.caps().immediates { &groups[..1] } else { &groups },
            immediate_size,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: self.options.checked,
                ..Default::default()
            },
            cache: self.pipelines.disk.as_ref().map(|(cache, _)| cache),
        });
        let errors = [pollster::block_on(validation.pop()), pollster::block_on(internal.pop())];
        match errors.into_iter().flatten().next() {
            Some(error) => Err(from_wgpu(&format!("compile {name}"), error)),
            None => Ok(Kernel { pipeline, params_bytes: spec.params.bytes, name }),
        }
    }

    fn module(&self, name: &str, text: &str) -> wgpu::ShaderModule {
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        };
        if self.options.checked {
            return self.device.create_shader_module(desc);
        }
        // SAFETY: our own kernels, which index inside their bindings for the sizes the host side
        // checks, and whose loops end; the tests run them with checks on as well.
        unsafe {
            self.device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }

    fn group_layout(&self, bindings: &'static [Access]) -> wgpu::BindGroupLayout {
        let mut layouts = self.pipelines.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |(access, binding): (&Access, u32)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let make = || {
            let entries: Vec<_> = bindings.iter().zip(0..).map(entry).collect();
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            })
        };
        layouts.entry(bindings).or_insert_with(make).clone()
    }

    /// `spec` compiled and bound to `tensors`: ready to record.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub fn op(&self, spec: &KernelSpec, tensors: &[&Tensor]) -> Result<Op> {
        let kernel = self.kernel(spec)?;
        let group = self.bind(spec.bindings, tensors);
        Ok(Op { kernel, group })
    }

    /// What is in `slot`: at first use the kernel of `spec`, compiled and bound to `group`.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub(crate) fn op_once<'a>(
        &self,
        slot: &'a OnceLock<Op>,
        group: &wgpu::BindGroup,
        spec: impl FnOnce() -> KernelSpec,
    ) -> Result<&'a Op> {
        if let Some(op) = slot.get() {
            return Ok(op);
        }
        let op = Op { kernel: self.kernel(&spec())?, group: group.clone() };
        Ok(slot.get_or_init(|| op))
    }

    /// Binds `tensors`, whole, to bindings 0.. of any kernel with that list.
    pub fn bind(&self, bindings: &'static [Access], tensors: &[&Tensor]) -> wgpu::BindGroup {
        let entries = tensors.iter().zip(0..).map(|(tensor, binding)| wgpu::BindGroupEntry {
            binding,
            resource: tensor.buffer.as_entire_binding(),
        });
        self.counters.bind_groups.fetch_add(1, Ordering::Relaxed);
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.group_layout(bindings),
            entries: &entries.collect::<Vec<_>>(),
        })
    }

    /// Keeps what was compiled for the next start, if anything was that is not kept yet. A failure
    /// costs only time then.
    pub fn save_pipelines(&self) {
        let Pipelines { disk, known, changed, compiled, .. } = &self.pipelines;
        if !changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let cached = disk.as_ref().and_then(|(cache, path)| Some((path, cache.get_data()?)));
        let saved = cached.map_or(Ok(()), |(path, data)| replace(path, &data));
        let compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = saved.and_then(|()| known.write(compiled.keys())) {
            log::warn!("the cache of compiled kernels: {e}");
        }
    }
}
