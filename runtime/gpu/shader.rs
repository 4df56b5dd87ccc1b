//! The text of a kernel: a generated header, the imported files, the body.
//!
//! Three ways to vary and no `#ifdef`: numbers are `const` lines, types are `alias` lines,
//! functions are joined files.

use std::fmt::Write as _;

use crate::dtype::DType;
use crate::identity;

/// Every shader of the runtime by its stem.
const SOURCES: &[(&str, &str)] = &[
    ("embedding", include_str!("../../shaders/embedding.wgsl")),
    ("rms_norm", include_str!("../../shaders/rms_norm.wgsl")),
    ("rms_norm_backward", include_str!("../../shaders/rms_norm_backward.wgsl")),
    ("matvec", include_str!("../../shaders/matvec.wgsl")),
    ("matvec_coop", include_str!("../../shaders/matvec_coop.wgsl")),
    ("matmul", include_str!("../../shaders/matmul.wgsl")),
    ("matmul_coop", include_str!("../../shaders/matmul_coop.wgsl")),
    ("matmul_backward", include_str!("../../shaders/matmul_backward.wgsl")),
    ("matmul_backward_coop", include_str!("../../shaders/matmul_backward_coop.wgsl")),
    ("matmul_backward_direct", include_str!("../../shaders/matmul_backward_direct.wgsl")),
    ("matmul_dense", include_str!("../../shaders/matmul_dense.wgsl")),
    ("matmul_dense_direct", include_str!("../../shaders/matmul_dense_direct.wgsl")),
    ("matmul_dense_thin", include_str!("../../shaders/matmul_dense_thin.wgsl")),
    ("rope", include_str!("../../shaders/rope.wgsl")),
    ("rope_train", include_str!("../../shaders/rope_train.wgsl")),
    ("row_exponents", include_str!("../../shaders/row_exponents.wgsl")),
    ("attention", include_str!("../../shaders/attention.wgsl")),
    ("attention_prefill", include_str!("../../shaders/attention_prefill.wgsl")),
    ("attention_reduce", include_str!("../../shaders/attention_reduce.wgsl")),
    ("attention_train", include_str!("../../shaders/attention_train.wgsl")),
    ("attention_delta", include_str!("../../shaders/attention_delta.wgsl")),
    ("attention_dq", include_str!("../../shaders/attention_dq.wgsl")),
    ("attention_dkv", include_str!("../../shaders/attention_dkv.wgsl")),
    ("swiglu", include_str!("../../shaders/swiglu.wgsl")),
    ("swiglu_backward", include_str!("../../shaders/swiglu_backward.wgsl")),
    ("cross_entropy", include_str!("../../shaders/cross_entropy.wgsl")),
    ("gather_rows", include_str!("../../shaders/gather_rows.wgsl")),
    ("grad_norm_partial", include_str!("../../shaders/grad_norm_partial.wgsl")),
    ("grad_norm_final", include_str!("../../shaders/grad_norm_final.wgsl")),
    ("adamw", include_str!("../../shaders/adamw.wgsl")),
    ("sgd", include_str!("../../shaders/sgd.wgsl")),
    ("sample_adjust", include_str!("../../shaders/sample_adjust.wgsl")),
    ("sample_threshold", include_str!("../../shaders/sample_threshold.wgsl")),
    ("sample_partial", include_str!("../../shaders/sample_partial.wgsl")),
    ("sample_final", include_str!("../../shaders/sample_final.wgsl")),
    ("lora_shrink", include_str!("../../shaders/lora_shrink.wgsl")),
    ("lora_expand", include_str!("../../shaders/lora_expand.wgsl")),
    ("lora_embedding", include_str!("../../shaders/lora_embedding.wgsl")),
    ("lora/a", include_str!("../../shaders/lora/a.wgsl")),
    ("lora/b", include_str!("../../shaders/lora/b.wgsl")),
    ("lora/coop_expand", include_str!("../../shaders/lora/coop_expand.wgsl")),
    ("lora/coop_none", include_str!("../../shaders/lora/coop_none.wgsl")),
    ("lora/expand_two", include_str!("../../shaders/lora/expand_two.wgsl")),
    ("lora/matvec_expand", include_str!("../../shaders/lora/matvec_expand.wgsl")),
    ("lora/matvec_none", include_str!("../../shaders/lora/matvec_none.wgsl")),
    ("lora/matvec_shrink", include_str!("../../shaders/lora/matvec_shrink.wgsl")),
    ("lora/no_two", include_str!("../../shaders/lora/no_two.wgsl")),
    ("lora/no_tile", include_str!("../../shaders/lora/no_tile.wgsl")),
    ("lora/shrink_rows", include_str!("../../shaders/lora/shrink_rows.wgsl")),
    ("lora/shrink_tile", include_str!("../../shaders/lora/shrink_tile.wgsl")),
    ("matvec/blocks", include_str!("../../shaders/matvec/blocks.wgsl")),
    ("matvec/quarters", include_str!("../../shaders/matvec/quarters.wgsl")),
    ("matvec/x_own", include_str!("../../shaders/matvec/x_own.wgsl")),
    ("matvec/x_shared", include_str!("../../shaders/matvec/x_shared.wgsl")),
    ("attention/split", include_str!("../../shaders/attention/split.wgsl")),
    ("attention/whole", include_str!("../../shaders/attention/whole.wgsl")),
    ("bandwidth", include_str!("../../shaders/bandwidth.wgsl")),
    ("quant/half/any", include_str!("../../shaders/quant/half/any.wgsl")),
    ("quant/half/nibbles", include_str!("../../shaders/quant/half/nibbles.wgsl")),
    ("quant/half/q4_1", include_str!("../../shaders/quant/half/q4_1.wgsl")),
    ("quant/half/q4_k", include_str!("../../shaders/quant/half/q4_k.wgsl")),
    ("quant/half/q8_0", include_str!("../../shaders/quant/half/q8_0.wgsl")),
    ("quant/half/q4_0", include_str!("../../shaders/quant/half/q4_0.wgsl")),
    ("shared/quads", include_str!("../../shaders/shared/quads.wgsl")),
    ("shared/quads_scalar", include_str!("../../shaders/shared/quads_scalar.wgsl")),
    ("shared/attention_tile", include_str!("../../shaders/shared/attention_tile.wgsl")),
    ("shared/dense", include_str!("../../shaders/shared/dense.wgsl")),
    ("shared/linear", include_str!("../../shaders/shared/linear.wgsl")),
    ("shared/clip", include_str!("../../shaders/shared/clip.wgsl")),
    ("shared/reduce_subgroup", include_str!("../../shaders/shared/reduce_subgroup.wgsl")),
    ("shared/sampler", include_str!("../../shaders/shared/sampler.wgsl")),
    ("shared/reduce_workgroup", include_str!("../../shaders/shared/reduce_workgroup.wgsl")),
];

/// What a kernel's text depends on.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Stem in `shaders/`.
    pub name: &'static str,
    /// `const NAME: u32 = value;` lines.
    pub consts: Vec<(&'static str, u32)>,
    /// `alias name = type;` lines.
    pub aliases: Vec<(&'static str, String)>,
    /// Files joined besides the body.
    pub imports: Vec<&'static str>,
    /// The weight format whose `dequant` and `dot_part` are joined.
    pub quant: Option<DType>,
    /// `enable f16;`
    pub f16: bool,
    /// `enable wgpu_cooperative_matrix;`
    pub cooperative_matrix: bool,
}

impl Source {
    /// The whole text; `immediates` says how `p` arrives.
    pub fn text(&self, immediates: bool) -> String {
        let mut text = String::new();
        if self.f16 {
            text.push_str("enable f16;\n");
        }
        if self.cooperative_matrix {
            text.push_str("enable wgpu_cooperative_matrix;\n");
        }
        for (name, value) in &self.consts {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        for (name, ty) in &self.aliases {
            let _ = writeln!(text, "alias {name} = {ty};");
        }
        text.push_str(if immediates {
            "var<immediate> p: Params;\n"
        } else {
            "@group(1) @binding(0) var<uniform> p: Params;\n"
        });
        for import in &self.imports {
            text.push_str(file(import));
        }
        if let Some(dtype) = self.quant {
            text.push_str(crate::quant::format(dtype).wgsl());
        }
        text.push_str(file(self.name));
        text
    }
}

fn file(name: &str) -> &'static str {
    SOURCES.iter().find(|(stem, _)| *stem == name).map_or("", |(_, text)| text)
}

/// The hash of every shader's text: verdicts on kernels hold for no others.
pub(crate) fn hash() -> String {
    let formats = DType::ALL.into_iter().map(|dtype| crate::quant::format(dtype).wgsl());
    identity::list(SOURCES.iter().map(|(_, text)| *text).chain(formats))
}
