//! The decoder layer as data: what a family's layers are made of, group by group. Loading, both
//! forward passes, the backward pass, adapters, training buffers and the memory plan read it here.
//!
//! A layer is four groups of linears. Each group's input is made from what the group before left
//! ([`Source`]), multiplied, and its output goes on ([`Follows`]). Sizes are
//! [`super::BaseShape::shape`]'s, names are Hugging Face's; how GGUF spells them is
//! `format/gguf/names`.

use super::Target;

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
    /// Those of a layer, in order.
    pub const IN_LAYER: [Self; 4] = [Self::Qkv, Self::OProj, Self::GateUp, Self::DownProj];

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

    /// The group that a linear is in.
    pub fn of(target: Target) -> Self {
        let has = |kind: &Self| kind.targets().contains(&target);
        Self::ALL.into_iter().find(has).unwrap_or(Self::EmbedTokens)
    }
}

/// Model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama, Mistral, `SmolLM`: `RMSNorm`, grouped-query attention with rotary embeddings,
    /// `SwiGLU`, no biases.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: norms of q's and k's heads.
    Qwen3,
    /// Gemma 3, its text model: norms before and after attention and MLP, norms of q's and k's
    /// heads, `GeGLU`, windows in five of six layers.
    Gemma3,
    /// `SmolLM3`: every fourth layer without rotary embedding.
    SmolLm3,
    /// Granite 3: multipliers.
    Granite,
    /// Phi 3 and 4: q, k and v are one tensor of a file, gate and up another; rotary embedding of a
    /// part of each head, with factors for long contexts.
    Phi3,
}

/// What the gate of an MLP goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x sigmoid(x)`: `SwiGLU`.
    Silu,
    /// GELU by its tanh approximation: `GeGLU`.
    GeluTanh,
}

/// What makes a group's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The norm of this name of the residual stream.
    Norm(&'static str),
    /// Attention over q, k and v.
    Attention,
    /// The activation of gate, times up.
    Gate,
}

/// What becomes of a group's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// The next group's source reads it.
    Store,
    /// It is added to the residual stream.
    Add,
    /// It goes through the norm of this name first.
    AddNormed(&'static str),
}

/// A group of a layer: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its linears.
    pub site: SiteKind,
    /// What makes its input.
    pub source: Source,
    /// Whether a vector, one number an output, is added to its products.
    pub bias: bool,
    /// What becomes of its output.
    pub follows: Follows,
}

impl Group {
    const fn new(site: SiteKind, source: Source, follows: Follows) -> Self {
        Self { site, source, bias: false, follows }
    }

    const fn biased(self) -> Self {
        Self { bias: true, ..self }
    }
}

/// A family: what its layers are, and the names by which files tell it.
#[derive(Debug)]
pub struct Family {
    /// Which.
    pub architecture: Architecture,
    /// GGUF's `general.architecture`, the prefix of its keys.
    pub gguf: &'static str,
    /// `model_type` of Hugging Face's `config.json`.
    pub model_types: &'static [&'static str],
    /// The groups of a layer, in order.
    pub groups: [Group; 4],
    /// Norms of each head of q and of k, before they are rotated.
    pub qk_norms: Option<[&'static str; 2]>,
    /// Of gate.
    pub activation: Activation,
    /// Groups that Hugging Face's files hold as one linear of this name, rows in order.
    pub joined: &'static [(SiteKind, &'static str)],
}

const QKV: Group = Group::new(SiteKind::Qkv, Source::Norm("input_layernorm"), Follows::Store);
const O_PROJ: Group = Group::new(SiteKind::OProj, Source::Attention, Follows::Add);
const GATE_UP: Group =
    Group::new(SiteKind::GateUp, Source::Norm("post_attention_layernorm"), Follows::Store);
const DOWN: Group = Group::new(SiteKind::DownProj, Source::Gate, Follows::Add);
const QK_NORMS: Option<[&str; 2]> = Some(["self_attn.q_norm", "self_attn.k_norm"]);

const LLAMA: Family = Family {
    architecture: Architecture::Llama,
    gguf: "llama",
    model_types: &["llama", "mistral"],
    groups: [QKV, O_PROJ, GATE_UP, DOWN],
    qk_norms: None,
    activation: Activation::Silu,
    joined: &[],
};

/// Every family.
pub static FAMILIES: [Family; 7] = [
    LLAMA,
    Family {
        architecture: Architecture::Qwen2,
        gguf: "qwen2",
        model_types: &["qwen2"],
        groups: [QKV.biased(), O_PROJ, GATE_UP, DOWN],
        ..LLAMA
    },
    Family {
        architecture: Architecture::Qwen3,
        gguf: "qwen3",
        model_types: &["qwen3"],
        qk_norms: QK_NORMS,
        ..LLAMA
    },
    Family {
        architecture: Architecture::Gemma3,
        gguf: "gemma3",
        model_types: &["gemma3_text", "gemma3"],
        groups: [
            QKV,
            Group { follows: Follows::AddNormed("post_attention_layernorm"), ..O_PROJ },
            Group { source: Source::Norm("pre_feedforward_layernorm"), ..GATE_UP },
            Group { follows: Follows::AddNormed("post_feedforward_layernorm"), ..DOWN },
        ],
        qk_norms: QK_NORMS,
        activation: Activation::GeluTanh,
        ..LLAMA
    },
    Family {
        architecture: Architecture::SmolLm3,
        gguf: "smollm3",
        model_types: &["smollm3"],
        ..LLAMA
    },
    Family {
        architecture: Architecture::Granite,
        gguf: "granite",
        model_types: &["granite"],
        ..LLAMA
    },
    Family {
        architecture: Architecture::Phi3,
        gguf: "phi3",
        model_types: &["phi3"],
        joined: &[(SiteKind::Qkv, "qkv_proj"), (SiteKind::GateUp, "gate_up_proj")],
        ..LLAMA
    },
];

impl Architecture {
    /// Its row.
    pub fn family(self) -> &'static Family {
        FAMILIES.iter().find(|family| family.architecture == self).unwrap_or(&FAMILIES[0])
    }
}

/// What one layer's attention does that another's may not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerAttention {
    /// Positions that a token sees, itself among them; `None` for all.
    pub window: Option<usize>,
    /// Which of [`super::ModelConfig::rotaries`].
    pub rotary: usize,
}
