//! Sites: the groups of linears with one input, whose LoRA is computed together; and what a pass
//! is told of the adapters at them.

use std::sync::Arc;

use crate::adapter::MAX_RANK;
use crate::gpu::Tensor;
use crate::kernels::lora::{self, Directory};

pub use crate::base::layout::SiteKind;

impl SiteKind {
    /// Largest u of any set, in elements of a row.
    pub(crate) const fn most_u_width(self) -> u32 {
        self.targets().len() as u32 * MAX_RANK
    }

    /// The site's number in a model of `layers` layers; `layer` is 0 for the head and the
    /// embedding.
    pub const fn site(self, layers: usize, layer: usize) -> usize {
        match self {
            Self::LmHead => 4 * layers,
            Self::EmbedTokens => 4 * layers + 1,
            _ => 4 * layer + self as usize,
        }
    }
}

/// Sites of a model of `layers` layers.
pub const fn site_count(layers: usize) -> usize {
    4 * layers + 2
}

/// Every site of a model of `layers` layers, by number: kind and layer.
pub fn sites(layers: usize) -> impl Iterator<Item = (SiteKind, Option<usize>)> {
    let inside = (0..layers)
        .flat_map(|layer| SiteKind::IN_LAYER.iter().map(move |&kind| (kind, Some(layer))));
    inside.chain(SiteKind::ALL[4..].iter().map(|&kind| (kind, None)))
}

/// What a pass needs to know of its rows' sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoraPass {
    /// Most elements of a row of u, by [`SiteKind`]; 0 where no row has an adapter.
    pub u_width: [u32; 6],
    /// By site, where all rows have the same adapter and no other.
    pub(crate) alone: Option<Arc<[Entries]>>,
}

/// For A and for B.
pub(crate) type Entries = [lora::Entry; 2];

impl LoraPass {
    /// The rows' only adapter at a site, for A and for B; zeros where they have several or not the
    /// same.
    pub fn alone(&self, site: u32) -> Entries {
        self.alone.as_ref().and_then(|sites| sites.get(site as usize)).copied().unwrap_or_default()
    }
}

/// The buffers of all adapters on the device, as kernels are bound to them.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// What lies in front of the factors.
    pub directory: Directory,
    /// The A factors.
    pub a: &'a Tensor,
    /// The B factors.
    pub b: &'a Tensor,
    /// How often the two have moved.
    pub moves: u64,
}
