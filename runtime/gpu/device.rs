//! The choice of a GPU and the device: the only file that requests a device.
//!
//! In: [`GpuOptions`]. Out: [`Gpu`], with what the GPU can do in [`Caps`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::{Deserialize, Serialize};

use super::fault::{self, Fault, from_wgpu};
use super::instance::adapters;
use super::memory::Allocated;
use crate::error::{Error, Result};
use crate::identity::Identity;

/// Small buffers share blocks of this size, the least there is. The default's blocks grow to
/// 64 MiB, most of it unused where memory is short.
const BLOCK_BYTES: u64 = 4 << 20;

/// What every device can bind.
const COMMON_BINDING: u64 = 128 << 20;
/// What is bound at most.
const LARGEST_BINDING: u64 = 2 << 30;

/// Which GPU to use and which of its abilities to leave unused.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// `discrete`, `integrated`, `software`, or part of the GPU's name. `None`: the fastest kind
    /// there is.
    pub name: Option<String>,
    /// Subgroup operations may be used.
    pub subgroups: bool,
    /// f16 storage may be used.
    pub f16: bool,
    /// Cooperative matrices may be used.
    pub cooperative_matrix: bool,
    /// Immediates may be used; a uniform ring otherwise.
    pub immediates: bool,
    /// Bindings may be larger than the 128 MiB that every device has.
    pub large_bindings: bool,
    /// Shaders are compiled with bounds checks and validated by the driver layers: slow, for
    /// debugging.
    pub checked: bool,
    /// Where the pipeline cache and the self-test's verdicts are kept; `None` keeps nothing.
    pub cache_dir: Option<PathBuf>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            name: None,
            subgroups: true,
            f16: true,
            cooperative_matrix: true,
            immediates: true,
            large_bindings: true,
            checked: false,
            cache_dir: None,
        }
    }
}

impl GpuOptions {
    /// The defaults, changed by `EPIPHYTE_GPU`, `EPIPHYTE_CHECKED=1` and
    /// `EPIPHYTE_DISABLE=subgroups,f16,cooperative_matrix,immediates,large_bindings`.
    ///
    /// Errors: [`Error::InvalidArgument`] where `EPIPHYTE_ADAPTER` is set, which `EPIPHYTE_GPU` was
    /// called before.
    pub fn from_env() -> Result<Self> {
        if std::env::var_os("EPIPHYTE_ADAPTER").is_some_and(|name| !name.is_empty()) {
            let reason =
                "it is called EPIPHYTE_GPU now (adapter means LoRA); set that instead".into();
            return Err(Error::InvalidArgument { name: "EPIPHYTE_ADAPTER", reason });
        }
        let disabled = std::env::var("EPIPHYTE_DISABLE").unwrap_or_default();
        let enabled = |name: &str| !disabled.split(',').any(|d| d.trim() == name);
        Ok(Self {
            name: std::env::var("EPIPHYTE_GPU").ok().filter(|name| !name.is_empty()),
            subgroups: enabled("subgroups"),
            f16: enabled("f16"),
            cooperative_matrix: enabled("cooperative_matrix"),
            immediates: enabled("immediates"),
            large_bindings: enabled("large_bindings"),
            checked: std::env::var("EPIPHYTE_CHECKED").is_ok_and(|v| v == "1"),
            cache_dir: crate::cache::cache_dir(),
        })
    }
}

/// What the kernels may rely on: the GPU's abilities less what [`GpuOptions`] turned off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// The smallest subgroup the driver may choose; `None` without subgroup operations.
    pub subgroup_size: Option<u32>,
    /// f16 in storage buffers and arithmetic.
    pub f16: bool,
    /// Side of the square cooperative matrices, f16 × f16 → f32.
    pub cooperative_matrix: Option<u32>,
    /// Cooperative matrices are loaded from scalars only, as on Metal.
    pub scalar_fragments: bool,
    /// Parameters travel as immediates.
    pub immediates: bool,
    /// The GPU is a CPU: barriers are slow and workgroup memory gains nothing.
    pub software: bool,
    /// Largest storage binding in bytes, at most 2 GiB: so far a signed offset reaches.
    pub max_binding_bytes: u64,
    /// Buffers up to this size share blocks of it; 0 where each has memory of its own, as on Metal.
    #[serde(default)]
    pub block_bytes: u64,
}

impl Caps {
    /// Those of the GPU that `options` name.
    ///
    /// Errors: [`Error::NoGpu`], [`Error::Gpu`].
    pub fn open(options: GpuOptions) -> Result<Self> {
        Gpu::open(options).map(|gpu| gpu.caps().clone())
    }

    /// A phone's, for plans where there is no GPU to ask.
    pub const PHONE: Self = Self {
        subgroup_size: Some(32),
        f16: true,
        cooperative_matrix: None,
        scalar_fragments: false,
        immediates: true,
        software: false,
        max_binding_bytes: COMMON_BINDING,
        block_bytes: BLOCK_BYTES,
    };

    /// Takes away what `other` does not allow; adds nothing.
    pub fn restrict(&mut self, other: &Self) {
        self.subgroup_size = self.subgroup_size.filter(|_| other.subgroup_size.is_some());
        self.f16 &= other.f16;
        let matrices =
            other.cooperative_matrix.is_some() && self.f16 && self.subgroup_size.is_some();
        self.cooperative_matrix = self.cooperative_matrix.filter(|_| matrices);
        self.max_binding_bytes = self.max_binding_bytes.min(other.max_binding_bytes);
    }
}

/// Work counted since the device was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Compute dispatches.
    pub dispatches: AtomicU64,
    /// Queue submissions.
    pub submits: AtomicU64,
    /// Pipelines compiled, or fetched from the cache on disk.
    pub pipelines: AtomicU64,
    /// Those of them that no earlier start with this cache folder compiled on this driver.
    pub compiled: AtomicU64,
    /// Kernels that the self-test ran.
    pub tested: AtomicU64,
    /// Bind groups made.
    pub bind_groups: AtomicU64,
    /// Bytes of weights and KV cache that the dispatches read, by their own count.
    pub bytes: AtomicU64,
    /// Times that the host waited for bytes of the device.
    pub reads: AtomicU64,
    /// Times that the host sent bytes to the device.
    pub writes: AtomicU64,
    /// Turns that callers took at the engine.
    pub turns: AtomicU64,
    /// The most submissions that others made between a caller's asking for the engine and its turn.
    pub most_waited: AtomicU64,
    /// Device memory in buffers made by the runtime and not yet dropped.
    pub allocated: Arc<Allocated>,
}

/// An open device and its queue.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) pipelines: super::pipeline::Pipelines,
    pub(crate) options: GpuOptions,
    info: wgpu::AdapterInfo,
    pub(super) caps: Caps,
    limits: wgpu::Limits,
    pub(super) fault: Fault,
    /// Arithmetic of a submission, if it was set.
    pub(super) unit: Option<u64>,
    /// Work done so far.
    pub counters: Counters,
}

impl Gpu {
    /// Opens the GPU that `options` name.
    ///
    /// Errors: [`Error::NoGpu`] listing what there is; [`Error::Gpu`] when the driver refuses a
    /// device.
    pub fn open(options: GpuOptions) -> Result<Self> {
        check_address_space()?;
        let adapter = choose(adapters(), options.name.as_deref())?;
        let info = adapter.get_info();
        let caps = caps(&adapter, &options);
        let limits = limits(&adapter);
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SUBGROUP, caps.subgroup_size.is_some());
        features.set(wgpu::Features::SHADER_F16, caps.f16);
        features.set(wgpu::Features::IMMEDIATES, caps.immediates);
        features.set(
            wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            caps.cooperative_matrix.is_some(),
        );
        features |=
            adapter.features() & (wgpu::Features::PIPELINE_CACHE | wgpu::Features::TIMESTAMP_QUERY);
        let experimental_features = if caps.cooperative_matrix.is_some() {
            // SAFETY: cooperative matrices are used by kernels that the self-test checks against
            // the CPU first.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("epiphyte"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::Manual {
                suballocated_device_memory_block_size: BLOCK_BYTES..BLOCK_BYTES,
            },
            trace: wgpu::Trace::Off,
        }))
        .map_err(|e| Error::Gpu { op: format!("open {}", info.name), reason: e.to_string() })?;
        let fault = fault::watch(&device);
        let pipelines = super::pipeline::Pipelines::new(&device, &info, &options);
        Ok(Self {
            device,
            queue,
            pipelines,
            options,
            info,
            caps,
            limits,
            fault,
            unit: None,
            counters: Counters::default(),
        })
    }

    /// What the kernels may rely on.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Stops using what `caps` does not allow; adds nothing. For what is compiled and allocated
    /// from now on.
    pub fn restrict(&mut self, caps: &Caps) {
        self.caps.restrict(caps);
    }

    /// Chooses kernels as on hardware although the GPU is a CPU: to test them there.
    pub fn treat_as_hardware(&mut self) {
        self.caps.software = false;
    }

    /// Submits after so many operations: to test what comes between two submissions.
    pub fn submit_after(&mut self, operations: u64) {
        self.unit = Some(operations);
    }

    /// The GPU's name, driver and kind.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// The limits the device was opened with.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }

    /// One line for people: name, backend, driver.
    pub fn description(&self) -> String {
        describe(&self.info)
    }

    /// Identifies GPU and driver version: what was measured for one key holds for no other.
    pub fn driver_key(&self) -> String {
        driver_key(&self.info)
    }

    /// Runs `work`; what the driver finds wrong with it, on this thread, becomes the error.
    ///
    /// Errors: those of `work`; [`Error::Gpu`] and [`Error::OutOfMemory`] naming `op`.
    pub(crate) fn scoped<T>(&self, op: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let filters = [
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
        ];
        let mut scopes = filters
            .map(|filter| self.device.push_error_scope(filter))
            .into_iter()
            .collect::<Vec<_>>();
        let done = work();
        let mut fault = None;
        while let Some(scope) = scopes.pop() {
            fault = pollster::block_on(scope.pop()).or(fault);
        }
        fault.map_or(done, |e| Err(from_wgpu(op, e)))
    }

    /// Waits until the device has finished `submission`, or everything submitted when `None`.
    ///
    /// Errors: as [`Gpu::check`].
    pub fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let poll = wgpu::PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(poll);
        self.check()?;
        polled.map(|_| ()).map_err(|e| Error::Gpu { op: "wait".into(), reason: e.to_string() })
    }

    /// Bytes of device memory that the runtime's buffers take now.
    pub fn allocated_bytes(&self) -> u64 {
        self.counters.allocated.total_bytes()
    }

    /// Bytes that the driver was asked for: those of [`Gpu::allocated_bytes`], what staging takes,
    /// and what is left of the blocks they are in. `None` where the backend does not count them, as
    /// on Metal.
    pub fn reserved_bytes(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|report| report.total_reserved_bytes)
    }
}

/// See [`Gpu::driver_key`].
pub(super) fn driver_key(info: &wgpu::AdapterInfo) -> String {
    let mut identity = Identity::new("epiphyte.driver.1");
    identity.add("backend", info.backend);
    identity.add("name", &info.name);
    identity.add("driver", &info.driver);
    identity.add("driver_info", &info.driver_info);
    identity.add("vendor", info.vendor);
    identity.add("device", info.device);
    identity.hash()[..16].to_string()
}

/// Name, backend and driver on one line.
pub fn describe(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?}, {} {})", info.name, info.backend, info.driver, info.driver_info)
}

/// Refuses what makes drivers crash: they take it that memory can be had (lavapipe writes to what
/// `malloc` refused).
#[cfg(all(unix, target_pointer_width = "64"))]
fn check_address_space() -> Result<()> {
    const NEEDED: u64 = 1 << 30;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes to the struct that it is given and keeps nothing.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
    if known && limit.rlim_cur < NEEDED {
        let (op, mib) = ("open a device".into(), limit.rlim_cur >> 20);
        let reason = format!(
            "this process may have {mib} MiB of addresses (`ulimit -v`), and drivers crash below \
            1024; lift that limit \
             (a memory budget bounds what is really used)"
        );
        return Err(Error::Gpu { op, reason });
    }
    Ok(())
}

#[cfg(not(all(unix, target_pointer_width = "64")))]
fn check_address_space() -> Result<()> {
    Ok(())
}

fn choose(all: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter> {
    let names = all.iter().map(|a| a.get_info().name).collect::<Vec<_>>().join("; ");
    let found = all.into_iter().find(|adapter| {
        let info = adapter.get_info();
        wanted.is_none_or(|wanted| match wanted.to_lowercase().as_str() {
            "discrete" => info.device_type == wgpu::DeviceType::DiscreteGpu,
            "integrated" => info.device_type == wgpu::DeviceType::IntegratedGpu,
            "software" => info.device_type == wgpu::DeviceType::Cpu,
            part => info.name.to_lowercase().contains(part),
        })
    });
    found.ok_or_else(|| match (wanted, names.as_str()) {
        (_, "") => Error::NoGpu(
            "the system offers none; install a Vulkan driver (Debian: mesa-vulkan-drivers and \
            libvulkan1, also a software one)"
                .into(),
        ),
        (wanted, names) => Error::NoGpu(format!(
            "none matches `{}` (EPIPHYTE_GPU); there are: {names}",
            wanted.unwrap_or_default()
        )),
    })
}

fn caps(adapter: &wgpu::Adapter, options: &GpuOptions) -> Caps {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    let f16 = options.f16 && features.contains(wgpu::Features::SHADER_F16);
    // Metal reports 4..64 whatever the GPU; Apple's run 32 lanes, and the self-test checks it.
    let min_size = if info.backend == wgpu::Backend::Metal { 32 } else { info.subgroup_min_size };
    let subgroup_size =
        (options.subgroups && features.contains(wgpu::Features::SUBGROUP)).then_some(min_size);
    let cooperative_matrix = adapter
        .cooperative_matrix_properties()
        .iter()
        .filter(|c| c.m_size == c.n_size && c.n_size == c.k_size)
        .filter(|c| {
            c.ab_type == wgpu::CooperativeScalarType::F16
                && c.cr_type == wgpu::CooperativeScalarType::F32
        })
        .map(|c| c.m_size)
        // The sides that WGSL has.
        .filter(|side| [8, 16].contains(side))
        .max()
        .filter(|_| options.cooperative_matrix && f16 && subgroup_size.is_some())
        .filter(|_| features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX));
    Caps {
        subgroup_size,
        f16,
        cooperative_matrix,
        scalar_fragments: info.backend == wgpu::Backend::Metal,
        immediates: options.immediates
            && features.contains(wgpu::Features::IMMEDIATES)
            && limits.max_immediate_size >= super::commands::MAX_PARAMS_BYTES,
        software: info.device_type == wgpu::DeviceType::Cpu,
        max_binding_bytes: limits
            .max_storage_buffer_binding_size
            .min(limits.max_buffer_size)
            .min(if options.large_bindings { LARGEST_BINDING } else { COMMON_BINDING }),
        block_bytes: if info.backend == wgpu::Backend::Metal { 0 } else { BLOCK_BYTES },
    }
}

/// Everything the GPU has: limits that are not asked for are not granted.
fn limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    adapter.limits()
}
