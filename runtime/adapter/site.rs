//! Sites: the groups of linears with one input, whose LoRA is computed together.

use super::module::Target;
use super::registry::MAX_RANK;

/// A group of linears with the same input, in the order a pass meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// q, k and v.
    Qkv,
    /// The attention's output.
    OProj,
    /// gate and up.
    GateUp,
    /// The MLP's output.
    DownProj,
    /// The head.
    LmHead,
    /// The embedding.
    EmbedTokens,
}

impl SiteKind {
    /// Every kind; the first four are in each layer.
    pub const ALL: [Self; 6] =
        [Self::Qkv, Self::OProj, Self::GateUp, Self::DownProj, Self::LmHead, Self::EmbedTokens];

    /// Its linears, in the order of their rows.
    pub const fn targets(self) -> &'static [Target] {
        match self {
            Self::Qkv => &[Target::QProj, Target::KProj, Target::VProj],
            Self::OProj => &[Target::OProj],
            Self::GateUp => &[Target::GateProj, Target::UpProj],
            Self::DownProj => &[Target::DownProj],
            Self::LmHead => &[Target::LmHead],
            Self::EmbedTokens => &[Target::EmbedTokens],
        }
    }

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
        .flat_map(|layer| SiteKind::ALL[..4].iter().map(move |&kind| (kind, Some(layer))));
    inside.chain(SiteKind::ALL[4..].iter().map(|&kind| (kind, None)))
}
