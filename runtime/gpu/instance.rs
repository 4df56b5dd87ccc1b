//! Which GPUs there are.

/// Every GPU of the machine, fastest kind first.
pub fn adapters() -> Vec<wgpu::Adapter> {
    #[cfg(target_os = "linux")]
    let mut all = vulkan::adapters();
    #[cfg(not(target_os = "linux"))]
    let mut all = pollster::block_on(instance(BACKENDS).enumerate_adapters(BACKENDS));
    all.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    all
}

#[cfg(not(target_os = "linux"))]
const BACKENDS: wgpu::Backends =
    wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);

fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = backends;
    desc.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(desc)
}

fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// An instance that can't draw. wgpu asks for windows of every kind, and Mesa's layer that orders
/// the devices then looks for a Wayland server, whose library writes to stderr where
/// `XDG_RUNTIME_DIR` is not set. Nothing here draws.
#[cfg(target_os = "linux")]
mod vulkan {
    use wgpu::hal::vulkan::{Api, Instance};
    use wgpu::hal::{Instance as _, InstanceDescriptor};

    const WINDOWS: [&std::ffi::CStr; 3] =
        [c"VK_KHR_wayland_surface", c"VK_KHR_xcb_surface", c"VK_KHR_xlib_surface"];

    pub(super) fn adapters() -> Vec<wgpu::Adapter> {
        let desc = InstanceDescriptor {
            name: "epiphyte",
            flags: wgpu::InstanceFlags::empty(),
            memory_budget_thresholds: wgpu::MemoryBudgetThresholds::default(),
            backend_options: wgpu::BackendOptions::default(),
            telemetry: None,
            display: None,
        };
        // SAFETY: of what wgpu asks for, only that is taken off which makes surfaces; none is ever
        // made here, and before making one wgpu looks whether it has the extension, as on systems
        // that lack it.
        let instance = unsafe {
            Instance::init_with_callback(
                &desc,
                Some(Box::new(|args| {
                    args.extensions.retain(|extension| !WINDOWS.contains(extension))
                })),
            )
        };
        // Without a loader or a driver there are none.
        let Ok(instance) = instance.inspect_err(|error| log::debug!("vulkan: {error}")) else {
            return Vec::new();
        };
        let context = super::instance(wgpu::Backends::empty());
        // SAFETY: no surface is given. Each adapter holds on to the Vulkan instance that it came
        // from; `context` only keeps count of them.
        unsafe {
            let exposed = instance.enumerate_adapters(None);
            exposed
                .into_iter()
                .map(|adapter| context.create_adapter_from_hal::<Api>(adapter))
                .collect()
        }
    }
}
