//! Between `tokenizer.json` of byte-level BPE and what a GGUF file says of a tokenizer.

use serde_json::{Map, Value, json};

use super::spec::TokenizerSpec;
use super::{EncodeOptions, Tokenizer, bpe};
use crate::error::{Error, Result};
use crate::format::gguf_writer::GgufWriter;

/// GGML's types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Pre-tokenisers that a `tokenizer.json` may mean: it has patterns, GGUF has a name for each.
const PRE: [&str; 11] = [
    "smollm",
    "llama-bpe",
    "qwen2",
    "gpt-2",
    "tekken",
    "gpt-4o",
    "falcon",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "default",
];
/// What they cut differently: numbers, spaces, lines, contractions, capitals, signs, scripts.
const PROBE: &str = "Hello, world! 3 33 333 3333 33333 1234567890  two   three    four\n\nline\r\n \
    \t tab\u{a0}x I'm WE'LL they'Ve don't camelCaseWord XMLHttp \u{c9}t\u{e9} na\u{ef}ve \
    \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{4f60}\u{597d}\u{4e16}\u{754c} \
    \u{304b}\u{306a} \u{d55c}\u{ad6d}\u{c5b4} \u{1f600}\u{1f680} a_b-c/d\\e $5.00 + <= >= ^~| \
    `code` {x: [1]} ... !!! '' \"quoted\" (see) #1 @me 50% x=y;  \n  end ";

/// A text by itself.
const BARE: EncodeOptions = EncodeOptions {
    add_bos: Some(false),
    add_eos: Some(false),
    parse_special: false,
    continuation: false,
};

fn failed(reason: &str) -> Error {
    Error::Tokenizer(format!("tokenizer.json: {reason}; download the checkpoint again"))
}

fn unsupported(what: &str) -> Error {
    let hint = "byte-level BPE cut like llama's, qwen2's, smollm's or gpt-2's is".into();
    Error::Unsupported { what: format!("a tokenizer.json with {what}"), hint }
}

/// The text of a token in `tokenizer_config.json`: itself, or within an object.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

impl TokenizerSpec {
    /// Reads byte-level BPE from the texts of `tokenizer.json` and `tokenizer_config.json`. Ids up
    /// to `vocab_size` that it leaves out become unused tokens. Which pre-tokeniser GGUF has a name
    /// for is found by trying which of them cuts a text as this one does.
    ///
    /// Errors: [`Error::Tokenizer`] for a damaged file; [`Error::Unsupported`] for another kind.
    pub fn from_tokenizer_json(text: &str, about: Option<&str>, vocab_size: usize) -> Result<Self> {
        let file: Value = serde_json::from_str(text).map_err(|_| failed("it is no JSON"))?;
        let about: Value = about.map_or(Ok(Value::Null), |about| {
            serde_json::from_str(about).map_err(|_| failed("tokenizer_config.json is no JSON"))
        })?;
        let model = &file["model"];
        if model["type"].as_str().unwrap_or("BPE") != "BPE" || model["byte_fallback"] == true {
            return Err(unsupported("a model that is no byte-level BPE"));
        }
        if !file["normalizer"].is_null() {
            return Err(unsupported("a `normalizer`"));
        }
        let (tokens, types) = tokens(&file, vocab_size)?;
        let id = |key: &str| {
            let text = content(&about[key])?;
            tokens.iter().position(|token| token == text).map(|id| id as u32)
        };
        let reference = Tokenizer::from_tokenizer_json(text.as_bytes())?;
        let mut spec = Self {
            model: "gpt2".into(),
            merges: merges(model)?,
            bos: id("bos_token"),
            eos: id("eos_token"),
            pad: id("pad_token"),
            chat_template: chat_template(&about["chat_template"])?,
            token_types: Some(types),
            tokens,
            ..Self::default()
        };
        let around = reference.encode("a", EncodeOptions::default())?;
        let alone = reference.encode("a", BARE)?;
        let added = |id: Option<&u32>, own: Option<&u32>| id.filter(|id| Some(*id) != own).copied();
        let before = added(around.first(), alone.first());
        let after = added(around.last(), alone.last());
        (spec.bos, spec.eos) = (spec.bos.or(before), spec.eos.or(after));
        spec.add_bos = Some(before.is_some() && before == spec.bos);
        spec.add_eos = (after.is_some() && after == spec.eos).then_some(true);
        spec.pre = Some(pre(&spec, &reference)?.into());
        Ok(spec)
    }
}

/// The one template, or of several that which is called `default`.
fn chat_template(value: &Value) -> Result<Option<String>> {
    let Some(several) = value.as_array() else { return Ok(value.as_str().map(String::from)) };
    let default = several.iter().find(|template| template["name"] == "default");
    let default = default.and_then(|template| template["template"].as_str());
    default.map(|text| Some(text.into())).ok_or_else(|| {
        unsupported("several chat templates in tokenizer_config.json, none of them `default`")
    })
}

/// The texts and types of all ids.
fn tokens(file: &Value, vocab_size: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let unused = |id: usize| format!("[PAD{id}]");
    let mut tokens: Vec<String> = (0..vocab_size).map(unused).collect();
    let mut types = vec![UNUSED; vocab_size];
    let mut set = |text: &str, id: Option<u64>, kind: i32| {
        let place = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocab_size);
        let id = place.ok_or_else(|| failed("a token's id is outside the vocabulary"))?;
        tokens[id] = text.into();
        types[id] = kind;
        Ok::<_, Error>(())
    };
    let vocab = file["model"]["vocab"].as_object();
    for (text, id) in vocab.ok_or_else(|| failed("it has no vocabulary"))? {
        set(text, id.as_u64(), NORMAL)?;
    }
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str();
        let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
        set(text.ok_or_else(|| failed("an added token has no text"))?, token["id"].as_u64(), kind)?;
    }
    Ok((tokens, types))
}

/// `left right`, however the file writes pairs.
fn merges(model: &Value) -> Result<Vec<String>> {
    let merge = |merge: &Value| match merge {
        Value::String(pair) => Some(pair.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    let merges = model["merges"].as_array().ok_or_else(|| failed("it has no merges"))?;
    merges.iter().map(merge).collect::<Option<_>>().ok_or_else(|| failed("a merge is no pair"))
}

/// The first pre-tokeniser that makes the same ids of a text with everything in it.
fn pre(spec: &TokenizerSpec, reference: &Tokenizer) -> Result<&'static str> {
    let expected = reference.encode(PROBE, BARE)?;
    for pre in PRE {
        let tokenizer =
            Tokenizer::from_spec(TokenizerSpec { pre: Some(pre.into()), ..spec.clone() })?;
        if tokenizer.encode(PROBE, BARE)? == expected {
            return Ok(pre);
        }
    }
    Err(unsupported("a pre-tokeniser that GGUF has no name for"))
}

impl TokenizerSpec {
    /// The `tokenizer.json` of byte-level BPE; `None` for a vocabulary of another kind.
    ///
    /// Errors: [`Error::Unsupported`] for an unknown pre-tokeniser.
    pub fn to_tokenizer_json(&self) -> Result<Option<Value>> {
        if self.model != "gpt2" {
            return Ok(None);
        }
        let pre = self.pre.as_deref().unwrap_or("default");
        let split = |pattern: &&str| {
            let pattern = json!({"Regex": pattern});
            json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
        };
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false,
        });
        let mut parts: Vec<Value> = bpe::patterns(pre)?.iter().map(split).collect();
        parts.push(bytes.clone());
        let named = self.tokens.iter().enumerate().filter(|(_, text)| !text.is_empty());
        let vocab: Map<String, Value> = named.map(|(id, text)| (text.clone(), id.into())).collect();
        Ok(Some(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "post_processor": self.post_processor(),
            "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": bpe::starts_with_bos(pre),
                "vocab": vocab, "merges": self.merges,
            },
        })))
    }

    fn added_tokens(&self) -> Vec<Value> {
        let types = self.token_types.iter().flatten();
        let added = self.tokens.iter().enumerate().zip(types);
        let added = added.filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED));
        let token = |((id, text), kind): ((usize, &String), &i32)| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL,
            })
        };
        added.map(token).collect()
    }

    /// What puts BOS before a text and EOS behind it, where they are.
    fn post_processor(&self) -> Value {
        let token = |id: Option<u32>, is_added: bool| {
            let id = id.filter(|_| is_added)?;
            Some((id, self.tokens.get(id as usize)?))
        };
        let (bos, eos) = (token(self.bos, self.adds_bos()), token(self.eos, self.adds_eos()));
        if bos.or(eos).is_none() {
            return Value::Null;
        }
        let special = |(_, text)| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let around = |texts: &[Value]| {
            let parts = bos.map(special).into_iter().chain(texts.iter().cloned());
            parts.chain(eos.map(special)).collect::<Vec<_>>()
        };
        let tokens = [bos, eos].into_iter().flatten();
        let tokens: Map<String, Value> = tokens
            .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        let (a, b) = (
            json!({"Sequence": {"id": "A", "type_id": 0}}),
            json!({"Sequence": {"id": "B", "type_id": 1}}),
        );
        json!({
            "type": "TemplateProcessing",
            "single": around(std::slice::from_ref(&a)),
            "pair": around(&[a.clone(), b]),
            "special_tokens": tokens,
        })
    }

    /// The `tokenizer_config.json` beside it.
    pub fn to_tokenizer_config(&self) -> Value {
        let mut keys = Map::new();
        keys.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        keys.insert("clean_up_tokenization_spaces".into(), false.into());
        let roles = [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)];
        for (key, id) in roles {
            let text = id.and_then(|id| self.tokens.get(id as usize));
            if let Some(text) = text {
                keys.insert(key.into(), text.as_str().into());
            }
        }
        if let Some(template) = &self.chat_template {
            keys.insert("chat_template".into(), template.as_str().into());
        }
        keys.into()
    }

    /// Writes the keys of GGUF for byte-level BPE.
    pub(crate) fn keys(&self, writer: &mut GgufWriter) {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        writer.text(&key("model"), &self.model);
        if let Some(pre) = &self.pre {
            writer.text(&key("pre"), pre);
        }
        writer.texts(&key("tokens"), &self.tokens).texts(&key("merges"), &self.merges);
        if let Some(types) = &self.token_types {
            writer.i32s(&key("token_type"), types);
        }
        let roles = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("padding_token_id", self.pad),
        ];
        for (name, id) in roles.into_iter().filter_map(|(name, id)| Some((name, id?))) {
            writer.u32(&key(name), id);
        }
        if let Some(add) = self.add_bos {
            writer.truth(&key("add_bos_token"), add);
        }
        if let Some(add) = self.add_eos {
            writer.truth(&key("add_eos_token"), add);
        }
        if let Some(template) = &self.chat_template {
            writer.text("tokenizer.chat_template", template);
        }
    }
}
