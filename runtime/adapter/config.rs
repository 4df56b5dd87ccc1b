//! `LoraConfig`: the keys of PEFT's `adapter_config.json` that decide what an adapter computes.

/// Which modules: names to compare with the end of a path, or one pattern for the whole path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modules {
    /// The path is one of these, or ends in `.` and one of these.
    Names(Vec<String>),
    /// A regular expression for the whole path. As `target_modules`, `all-linear` means every linear but the head.
    Pattern(String),
}

/// What PEFT's `LoraConfig` says, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of the modules that [`Self::rank_pattern`] leaves alone; at least 1.
    pub r: usize,
    /// Divided by the rank, it is the scaling.
    pub lora_alpha: f64,
    /// Divide by the rank's square root instead (Kalajdzievski 2023, arXiv:2312.03732).
    pub use_rslora: bool,
    /// Pattern for the end of a path, rank: the first that matches decides.
    pub rank_pattern: Vec<(String, usize)>,
    /// Pattern for the end of a path, alpha: the first that matches decides.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The modules it sits on.
    pub target_modules: Modules,
    /// Modules to leave out of them.
    pub exclude_modules: Option<Modules>,
    /// Only these layers, unless empty. Paths that [`Self::target_modules`] names in full are not held to it.
    pub layers_to_transform: Vec<i64>,
    /// Patterns of the name before a layer's number; empty for any.
    pub layers_pattern: Vec<String>,
    /// Dropout on the way into A, in training only.
    pub lora_dropout: f64,
    /// The base's name or folder; not needed to load.
    pub base_model_name_or_path: Option<String>,
}

impl Default for LoraConfig {
    /// PEFT's defaults for a llama: rank 8, alpha 8, `q_proj` and `v_proj`.
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            use_rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            target_modules: Modules::Names(vec!["q_proj".into(), "v_proj".into()]),
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            lora_dropout: 0.0,
            base_model_name_or_path: None,
        }
    }
}
