//! The text of a kernel: what the host writes, then the kernel's file and all that it is made of.
//!
//! A file of `shaders/` says at its head, before its first line of code, what it is made of:
//!
//! - `//import NAME, …`: other files, each joined once.
//! - `//needs NAME, …`: interfaces. Of the files that say `//fills NAME` the host chooses one.
//! - `//const NAME, …`: `u32` constants that the host gives.
//! - `//enable NAME, …`: extensions of the language.
//!
//! Numbers vary by constants, types and functions by the file that fills an interface; there is no
//! `#ifdef`. `Params` is written from its Rust struct, see [`super::params`].

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::params::Layout;
use super::pipeline::Access;
use crate::error::{Error, Result};
use crate::identity;

macro_rules! sources {
    ($($stem:literal,)*) => {
        &[$(($stem, include_str!(concat!("../../shaders/", $stem, ".wgsl"))),)*]
    };
}

/// Every file of `shaders/` by its stem.
const SOURCES: &[(&str, &str)] = sources![
    "activation/gelu_tanh",
    "activation/silu",
    "adamw",
    "attention",
    "attention/backward",
    "attention/split",
    "attention/tile",
    "attention/whole",
    "attention_delta",
    "attention_dkv",
    "attention_dq",
    "attention_prefill",
    "attention_prefill_coop",
    "attention_reduce",
    "attention_train",
    "backward/dy_fours",
    "backward/dy_ones",
    "bandwidth",
    "cross_entropy",
    "embedding",
    "gather_rows",
    "grad_norm_final",
    "grad_norm_partial",
    "heads/beside",
    "heads/plain",
    "heads_backward",
    "lora/a",
    "lora/b",
    "lora/coop_expand",
    "lora/coop_none",
    "lora/expand_two",
    "lora/matvec_expand",
    "lora/matvec_none",
    "lora/matvec_shrink",
    "lora/no_tile",
    "lora/no_two",
    "lora/shrink_rows",
    "lora/shrink_tile",
    "lora_embedding",
    "lora_expand",
    "lora_shrink",
    "matmul",
    "matmul_backward",
    "matmul_backward_coop",
    "matmul_backward_direct",
    "matmul_coop",
    "matmul_dense",
    "matmul_dense_direct",
    "matmul_dense_thin",
    "matvec",
    "matvec/blocks",
    "matvec/quarters",
    "matvec/x_own",
    "matvec/x_shared",
    "matvec_coop",
    "proximal",
    "quant/bf16",
    "quant/by_level",
    "quant/dot_generic",
    "quant/f16",
    "quant/f32",
    "quant/fifth_bits",
    "quant/half/any",
    "quant/half/nibbles",
    "quant/half/q4_0",
    "quant/half/q4_1",
    "quant/half/q4_k",
    "quant/half/q8_0",
    "quant/iq4_nl",
    "quant/k_scales",
    "quant/nf4",
    "quant/nf4_dq",
    "quant/nf4_levels",
    "quant/nibbles",
    "quant/q2_1",
    "quant/q2_k",
    "quant/q3_0",
    "quant/q3_k",
    "quant/q4_0",
    "quant/q4_1",
    "quant/q4_k",
    "quant/q5_0",
    "quant/q5_1",
    "quant/q5_k",
    "quant/q6_k",
    "quant/q8_0",
    "quant/tq2_0",
    "quant/two_bits",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_train",
    "row_exponents",
    "sample_adjust",
    "sample_final",
    "sample_mask",
    "sample_partial",
    "sample_threshold",
    "sgd",
    "shared/backward",
    "shared/clip",
    "shared/dense",
    "shared/fragment_store",
    "shared/fragments_16",
    "shared/fragments_8",
    "shared/kv_f16",
    "shared/kv_f32",
    "shared/linear",
    "shared/quads",
    "shared/quads_scalar",
    "shared/reduce_subgroup",
    "shared/reduce_workgroup",
    "shared/sampler",
    "swiglu",
    "swiglu_backward",
];

/// What a kernel is: its text and the layout of its bindings.
#[derive(Clone, Debug, Default)]
pub struct KernelSpec {
    /// Stem of its file in `shaders/`.
    pub name: &'static str,
    /// The constants that its files declare, each once.
    pub consts: Vec<(&'static str, u32)>,
    /// A file for each interface that its files need.
    pub fills: Vec<&'static str>,
    /// Storage bindings 0.. of group 0.
    pub bindings: &'static [Access],
    /// `Params`, which it reads as `p`.
    pub params: Layout,
}

impl KernelSpec {
    /// The whole text; `immediates` says how `p` arrives.
    ///
    /// Errors: [`Error::Gpu`] naming a file, interface or constant that is unknown, missing or one
    /// too many.
    pub fn text(&self, immediates: bool) -> Result<String> {
        let joined = Joined::of(self)
            .map_err(|reason| Error::Gpu { op: format!("join {}", self.name), reason })?;
        let mut text = String::new();
        for extension in &joined.extensions {
            let _ = writeln!(text, "enable {extension};");
        }
        for (name, value) in &self.consts {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        if !self.params.fields.is_empty() {
            text.push_str(&self.params.wgsl("Params"));
            text.push_str(if immediates {
                "var<immediate> p: Params;\n"
            } else {
                "@group(1) @binding(0) var<uniform> p: Params;\n"
            });
        }
        joined.files.iter().for_each(|(_, file)| text.push_str(file));
        Ok(text)
    }
}

/// The files of a kernel, and what their heads ask for.
#[derive(Default)]
struct Joined {
    files: Vec<(&'static str, &'static str)>,
    extensions: BTreeSet<&'static str>,
    consts: BTreeSet<&'static str>,
}

impl Joined {
    fn of(spec: &KernelSpec) -> Result<Self, String> {
        let mut joined = Self::default();
        joined.join(spec.name, &spec.fills)?;
        joined.check(spec)?;
        Ok(joined)
    }

    /// Adds the file `stem` and what it is made of.
    fn join(&mut self, stem: &str, fills: &[&'static str]) -> Result<(), String> {
        if self.files.iter().any(|(joined, _)| *joined == stem) {
            return Ok(());
        }
        let source @ (_, text) = source(stem)?;
        self.files.push(source);
        for Line { word, name } in head(text) {
            match word {
                "import" => self.join(name, fills)?,
                "needs" => {
                    let filling = filling(name, fills)?;
                    let [fill] = filling[..] else {
                        let all = filling.join(", ");
                        return Err(format!("one file must fill `{name}`, not [{all}]"));
                    };
                    self.join(fill, fills)?;
                }
                "const" => drop(self.consts.insert(name)),
                "enable" => drop(self.extensions.insert(name)),
                "fills" => {}
                _ => return Err(format!("{stem} says `//{word}`, which means nothing")),
            }
        }
        Ok(())
    }

    /// The host has given each constant once, and no others, nor files that nobody needs.
    fn check(&self, spec: &KernelSpec) -> Result<(), String> {
        let joined = |fill: &str| self.files.iter().any(|(stem, _)| *stem == fill);
        if let Some(fill) = spec.fills.iter().find(|fill| !joined(fill)) {
            return Err(format!("{fill} fills no interface that is needed"));
        }
        for name in &self.consts {
            match spec.consts.iter().filter(|(given, _)| given == name).count() {
                1 => {}
                times => return Err(format!("constant {name} is given {times} times, not once")),
            }
        }
        if let Some((name, _)) = spec.consts.iter().find(|(name, _)| !self.consts.contains(name)) {
            return Err(format!("constant {name} is given, but no file declares it"));
        }
        Ok(())
    }
}

/// A name that a file's head lists, and the word before it.
struct Line {
    word: &'static str,
    name: &'static str,
}

/// What the head of a file says: its lines that begin with `//` and no space.
fn head(text: &'static str) -> impl Iterator<Item = Line> {
    text.lines()
        .map_while(|line| line.strip_prefix("//"))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .flat_map(|line| {
            let (word, names) = line.split_once(' ').unwrap_or((line, ""));
            names.split(", ").map(move |name| Line { word, name })
        })
}

/// Those of `fills` that fill `interface`.
fn filling(interface: &str, fills: &[&'static str]) -> Result<Vec<&'static str>, String> {
    let mut filling = Vec::new();
    for fill in fills {
        let (_, text) = source(fill)?;
        if head(text).any(|line| line.word == "fills" && line.name == interface) {
            filling.push(*fill);
        }
    }
    Ok(filling)
}

fn source(stem: &str) -> Result<(&'static str, &'static str), String> {
    let found = SOURCES.iter().find(|(name, _)| *name == stem);
    found.copied().ok_or_else(|| format!("there is no shaders/{stem}.wgsl"))
}

/// The hash of every shader's text: verdicts on kernels hold for no others.
pub(crate) fn hash() -> String {
    identity::list(SOURCES.iter().map(|(_, text)| *text))
}
