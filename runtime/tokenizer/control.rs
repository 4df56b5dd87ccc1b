//! Control tokens by name: what files type wrongly, and what ends an answer.

use super::table::Kind;

/// What ends a turn or a text, across families: control tokens whatever a file types them as.
const ENDS: [&str; 17] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<turn|>",
    "<|end|>",
    "<|eot|>",
    "<|eom|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_sentence|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<EOT>",
];

/// Ends that are also things people write: only where the file types them as special.
const ENDS_IF_SPECIAL: [&str; 2] = ["<eos>", "</s>"];

/// What begins a turn, likewise.
const BEGINS: [&str; 8] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<|turn>",
    "<|begin_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
];

/// Roles that templates put between `<|` and `|>` themselves.
const ROLES: [&str; 4] = ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"];

/// Names of the tokens after which a model has nothing more to say, the likelier first.
pub(super) fn end_names() -> impl Iterator<Item = &'static str> {
    ENDS.into_iter().chain(ENDS_IF_SPECIAL)
}

/// Whether `text` begins or ends a turn whatever its file types it as.
pub(super) fn is_turn(text: &str) -> bool {
    ENDS.contains(&text) || BEGINS.contains(&text)
}

/// What `text`, which its file types as `kind`, is: a token that begins or ends a turn is a control
/// token, and so is one that looks like it and is in the chat template. `has_role`: it is BOS or
/// ends a text or turn.
pub(super) fn kind(text: &str, kind: Kind, template: Option<&str>, has_role: bool) -> Kind {
    let typed_as_text = kind == Kind::Normal || kind == Kind::UserDefined;
    let in_template =
        |template: &str| template.contains(text) || builds_roles(template) && ROLES.contains(&text);
    let is_control = match kind {
        _ if typed_as_text && is_turn(text) => true,
        Kind::Normal => {
            has_role && is_bracketed(text)
                || looks_like_control(text) && template.is_some_and(in_template)
        }
        _ => false,
    };
    if is_control { Kind::Control } else { kind }
}

/// `'<|' + role + '|>'`
fn builds_roles(template: &str) -> bool {
    ["'<|'", "\"<|\""].iter().any(|quoted| template.contains(quoted))
}

/// A name in angle or square brackets.
fn is_bracketed(text: &str) -> bool {
    let name = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let name = name.or_else(|| text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')));
    name.is_some_and(|name| !name.is_empty() && !name.contains(char::is_whitespace))
}

/// `<|...|>`, `<..._of_turn>`, `[INST]`, `[/INST]`: no tag that a text could hold, such as
/// `<think>`.
fn looks_like_control(text: &str) -> bool {
    if !is_bracketed(text) || text.len() < 5 {
        return false;
    }
    let name = text.trim_matches(['<', '>', '[', ']']);
    let has_bar = [name.chars().next(), name.chars().last()]
        .into_iter()
        .flatten()
        .any(|c| matches!(c, '|' | '\u{ff5c}'));
    let upper = || name.chars().all(|c| c.is_ascii_uppercase() || matches!(c, '_' | '/'));
    if text.starts_with('[') { upper() } else { has_bar || name.ends_with("_of_turn") }
}
