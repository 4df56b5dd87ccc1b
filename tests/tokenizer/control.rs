//! Control tokens that their file types as something else.

use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
use serde_json::json;

use super::{byte_level, sentence_piece};

const SPECIAL: EncodeOptions =
    EncodeOptions { add_bos: Some(false), add_eos: None, parse_special: true, continuation: true };

/// A vocabulary of either kind that types `names` as `kind`, and the id of the first.
fn typed(sentence: bool, names: &[&str], kind: i32, template: Option<&str>) -> (Tokenizer, u32) {
    let mut spec = if sentence { sentence_piece(names) } else { byte_level("qwen2", &[], names) };
    let first = spec.tokens.len() - names.len();
    spec.token_types.as_mut().unwrap()[first..].fill(kind);
    spec.chat_template = template.map(String::from);
    (Tokenizer::from_spec(spec).unwrap(), u32::try_from(first).unwrap())
}

/// Parsed where control tokens are, hidden, and plain text elsewhere.
fn is_control(tokenizer: &Tokenizer, name: &str, id: u32) -> bool {
    let plain = EncodeOptions { parse_special: false, ..SPECIAL };
    let hidden = tokenizer.is_special(id);
    assert_eq!(tokenizer.decode(&[id]).is_empty(), hidden, "{name}");
    assert_eq!(tokenizer.encode(name, SPECIAL).unwrap() == [id], hidden, "{name}");
    if hidden {
        assert!(
            !tokenizer.encode(name, plain).unwrap().contains(&id),
            "{name}: a text can't forge it"
        );
    }
    hidden
}

#[test]
fn turns_are_known_by_name_however_they_are_typed() {
    let ends = [
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<end_of_turn>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "<turn|>",
        "<｜end▁of▁sentence｜>",
    ];
    let begins =
        ["<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|turn>"];
    for (sentence, kind) in [(false, 1), (true, 1), (false, 4), (true, 4), (false, 3)] {
        for (names, ends) in [(&ends[..], true), (&begins, false)] {
            let (tokenizer, first) = typed(sentence, names, kind, None);
            for (id, name) in (first..).zip(names) {
                assert!(is_control(&tokenizer, name, id), "{name} {sentence} {kind}");
                assert_eq!(tokenizer.is_end_of_generation(id), ends, "{name}");
            }
        }
    }
}

#[test]
fn what_the_template_spells_counts_when_it_looks_like_a_control_token() {
    let names = [
        "<|user|>",
        "<|custom|>",
        "[INST]",
        "[/INST]",
        "<user_of_turn>",
        "<think>",
        "[x]",
        "<|free|>",
        "hello",
    ];
    let template = "{{ '<|user|>' }}<|custom|>[INST] [/INST]<user_of_turn><think>[x] hello";
    for sentence in [false, true] {
        let (with, first) = typed(sentence, &names, 1, Some(template));
        let found: Vec<bool> = (first..).zip(names).map(|(id, _)| with.is_special(id)).collect();
        assert_eq!(found, [true, true, true, true, true, false, false, false, false]);
        (first..).zip(names).take(5).for_each(|(id, name)| assert!(is_control(&with, name, id)));
        let (without, first) = typed(sentence, &names, 1, None);
        assert!((first..).zip(names).all(|(id, _)| !without.is_special(id)));
        // What the file types as the user's stays so.
        let (user, first) = typed(sentence, &names, 4, Some(template));
        assert!((first..).zip(names).all(|(id, _)| !user.is_special(id)));
    }
    // A template that puts roles between the bars itself.
    let (built, first) =
        typed(false, &["<|user|>", "<|tool|>", "<|other|>"], 1, Some("{{ '<|' + m.role + '|>' }}"));
    assert_eq!([0, 1, 2].map(|i| built.is_special(first + i)), [true, true, false]);
}

#[test]
fn bos_and_eos_that_are_typed_as_text_are_control_tokens() {
    let change = |bos: &str, eos: &str| -> TokenizerSpec {
        let mut spec = byte_level("gpt-2", &[], &[bos, eos]);
        spec.token_types.as_mut().unwrap().fill(1);
        (spec.bos, spec.eos) = (Some(256), Some(257));
        spec
    };
    let tokenizer = Tokenizer::from_spec(change("<s>", "</s>")).unwrap();
    assert!(is_control(&tokenizer, "<s>", 256) && is_control(&tokenizer, "</s>", 257));
    // But not every text that a file names as its end.
    let tokenizer = Tokenizer::from_spec(change("<s>", "the end")).unwrap();
    assert!(!tokenizer.is_special(257) && tokenizer.is_end_of_generation(257));
    let mut spec = byte_level("gpt-2", &[], &["<|eom|>x"]);
    spec.eom = Some(256);
    assert!(
        Tokenizer::from_spec(spec).unwrap().is_end_of_generation(256),
        "the end of a message ends an answer"
    );
}

#[test]
fn a_tokenizer_json_may_type_them_wrongly_too() {
    let vocab = json!({"a": 0, "<|im_end|>": 1, "<|im_start|>": 2, "<|x|>": 3});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let added = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true,
               "special": false})
    };
    for added in [json!(null), json!([]), json!([added(1, "<|im_end|>"), added(3, "<|x|>")])] {
        let file = json!({
            "version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": false, "fuse_unk": false},
        });
        let tokenizer = Tokenizer::from_tokenizer_json(file.to_string().as_bytes()).unwrap();
        assert!(
            is_control(&tokenizer, "<|im_end|>", 1) && is_control(&tokenizer, "<|im_start|>", 2)
        );
        assert!(!tokenizer.is_special(3) && tokenizer.is_end_of_generation(1));
        assert_eq!(tokenizer.eos(), Some(1));
    }
    for broken in [json!([{"model": {}}]), json!({"model": {"vocab": 1}, "added_tokens": 3})] {
        assert!(Tokenizer::from_tokenizer_json(broken.to_string().as_bytes()).is_err());
    }
}
