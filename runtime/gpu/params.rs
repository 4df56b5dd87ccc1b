//! What a dispatch tells its kernel: a struct said once, in Rust, of which the joiner makes the
//! WGSL.

/// A member of a struct that shaders read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name on both sides.
    pub name: &'static str,
    /// Its type in WGSL; none for padding, which WGSL puts in by itself.
    pub wgsl: Option<&'static str>,
    /// Bytes before it, in Rust.
    pub offset: usize,
}

/// A struct that shaders read, as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Its members in their order.
    pub fields: &'static [Field],
    /// Bytes in all.
    pub bytes: u32,
}

impl Layout {
    /// The struct in WGSL.
    pub(super) fn wgsl(&self, name: &str) -> String {
        let member = |field: &Field| Some(format!("    {}: {},\n", field.name, field.wgsl?));
        let members: String = self.fields.iter().filter_map(member).collect();
        format!("struct {name} {{\n{members}}}\n")
    }
}

/// A type that members have on both sides.
pub(crate) trait Member {
    const WGSL: Option<&'static str>;
}

impl Member for u32 {
    const WGSL: Option<&'static str> = Some("u32");
}

impl Member for f32 {
    const WGSL: Option<&'static str> = Some("f32");
}

impl Member for [u32; 4] {
    const WGSL: Option<&'static str> = Some("vec4<u32>");
}

/// Padding, so that a `vec4` begins at a multiple of 16 bytes.
impl Member for [u32; 3] {
    const WGSL: Option<&'static str> = None;
}

/// As well.
impl Member for [u32; 2] {
    const WGSL: Option<&'static str> = None;
}

/// Structs that shaders read, plain data with a `LAYOUT` each. Members are `u32`, `f32` and
/// `[u32; 4]`, a `vec4<u32>`, before which `[u32; 3]` or `[u32; 2]` may pad.
macro_rules! params {
    ($($(#[$attribute:meta])* pub struct $name:ident {
        $($(#[$about:meta])* pub $field:ident: $ty:ty,)*
    })*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name {
            $($(#[$about])* pub $field: $ty,)*
        }

        impl $name {
            /// As shaders see it.
            pub const LAYOUT: $crate::gpu::params::Layout = $crate::gpu::params::Layout {
                fields: &[$($crate::gpu::params::Field {
                    name: stringify!($field),
                    wgsl: <$ty as $crate::gpu::params::Member>::WGSL,
                    offset: std::mem::offset_of!($name, $field),
                },)*],
                bytes: size_of::<$name>() as u32,
            };
        }
    )*};
}

pub(crate) use params;
