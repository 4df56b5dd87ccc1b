//! GGUF's tensor names and Hugging Face's: mapped here and nowhere else.

/// Names outside the layers. Factors of rotary frequencies have no counterpart and keep their
/// names.
const GLOBAL: [(&str, &str); 6] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("rope_freqs.weight", "rope_freqs.weight"),
    ("rope_factors_long.weight", "rope_factors_long.weight"),
    ("rope_factors_short.weight", "rope_factors_short.weight"),
];

/// Modules of a layer, without `.weight` or `.bias`.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Those of families that name modules of a layer otherwise; they come first.
const OWN: [(&str, &str, &str); 5] = [
    ("gemma3", "post_attention_norm", "post_attention_layernorm"),
    ("gemma3", "ffn_norm", "pre_feedforward_layernorm"),
    ("gemma3", "post_ffw_norm", "post_feedforward_layernorm"),
    ("phi3", "attn_qkv", "self_attn.qkv_proj"),
    ("phi3", "ffn_up", "mlp.gate_up_proj"),
];

/// Linears that families' files hold as one tensor, rows in order.
const JOINED: [(&str, &str, &[&str]); 2] = [
    ("phi3", "self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("phi3", "mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
];

/// The matrices that a tensor of several linears holds, by its Hugging Face name; none for others.
pub(super) fn parts(architecture: &str, hf: &str) -> Vec<String> {
    let found =
        JOINED.iter().filter(|(of, ..)| *of == architecture).find_map(|(_, whole, parts)| {
            let before = hf.strip_suffix(".weight")?.strip_suffix(whole)?;
            Some(parts.iter().map(|part| format!("{before}{part}.weight")).collect())
        });
    found.unwrap_or_default()
}

/// Families whose files interleave the halves of each head of q and k.
const INTERLEAVED: [&str; 3] = ["llama", "granite", "smollm3"];

/// Whether files of a family interleave the halves of each head of q and k.
pub(crate) fn interleaves(architecture: &str) -> bool {
    INTERLEAVED.contains(&architecture)
}

/// Modules of a layer of a family: GGUF's name, Hugging Face's.
fn modules(architecture: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = OWN.iter().filter(move |(of, ..)| *of == architecture);
    own.map(|&(_, gguf, hf)| (gguf, hf)).chain(LAYER)
}

/// The Hugging Face module path of a llama's GGUF tensor; `None` for a name this runtime has no use
/// for.
pub fn hf_name(gguf: &str) -> Option<String> {
    hf_name_in("llama", gguf)
}

/// The Hugging Face module path of a GGUF tensor of a family.
pub(crate) fn hf_name_in(architecture: &str, gguf: &str) -> Option<String> {
    if let Some((_, hf)) = GLOBAL.iter().find(|(name, _)| *name == gguf) {
        return Some((*hf).into());
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let (module, part) = rest.split_once('.')?;
    let (_, hf) = modules(architecture).find(|(name, _)| *name == module)?;
    // `blk.00` would be a second name for layer 0.
    let canonical = layer.parse::<u32>().is_ok_and(|n| n.to_string() == layer);
    (canonical && matches!(part, "weight" | "bias"))
        .then(|| format!("model.layers.{layer}.{hf}.{part}"))
}

/// The GGUF tensor of a Hugging Face path, [`hf_name_in`]'s inverse; of a part of one, the whole.
pub(crate) fn gguf_name(architecture: &str, hf: &str) -> Option<String> {
    if let Some((gguf, _)) = GLOBAL.iter().find(|(_, name)| *name == hf) {
        return Some((*gguf).into());
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let holds = |parts: &&[&str]| parts.contains(&module);
    let joined = JOINED.iter().find(|(of, _, parts)| *of == architecture && holds(parts));
    let module = joined.map_or(module, |(_, joined, _)| joined);
    let (gguf, _) = modules(architecture).find(|(_, name)| *name == module)?;
    Some(format!("blk.{layer}.{gguf}.{part}"))
}
