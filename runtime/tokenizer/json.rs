//! `tokenizer.json` of Hugging Face, run by the crate that defines it.

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use super::special::SpecialTokens;
use super::table::{Kind, TokenTable};
use super::{Encode, EncodeOptions, Tokenizer, bpe, control, spm};
use crate::error::{Error, Result};

/// Ids from here on come from a broken file: no vocabulary is near it.
const MAX_VOCAB: u32 = 1 << 22;

/// The crate's own pipeline, once for text whose control tokens count and once for text where they
/// don't.
struct Pipeline {
    parsing: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
    /// The same without what they put before a text, if they do: for continuations.
    bare: Option<Box<Self>>,
}

impl Pipeline {
    fn new(parsing: tokenizers::Tokenizer, bare: Option<Self>) -> Self {
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);
        Self { parsing, plain, bare: bare.map(Box::new) }
    }

    fn of(&self, options: EncodeOptions) -> &tokenizers::Tokenizer {
        if options.parse_special { &self.parsing } else { &self.plain }
    }
}

impl Encode for Pipeline {
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<u32>) -> Result<()> {
        let mut rest = text;
        if let Some(bare) = self.bare.as_ref().filter(|_| options.continuation) {
            let pipeline = bare.of(options);
            let added = pipeline.get_added_tokens_decoder();
            let all = pipeline.encode(text, false).map_err(failed)?;
            // What follows a special token is no continuation.
            let special =
                all.get_ids().iter().position(|id| added.contains_key(id)).unwrap_or(all.len());
            ids.extend(&all.get_ids()[..special]);
            rest = all
                .get_offsets()
                .get(special)
                .and_then(|&(start, _)| text.get(start..))
                .unwrap_or_default();
        }
        if !rest.is_empty() {
            ids.extend(self.of(options).encode_fast(rest, false).map_err(failed)?.get_ids());
        }
        Ok(())
    }
}

/// The file without what its pipeline puts before a text; nothing where it puts nothing.
fn without_prefix(mut file: Value) -> Result<Option<tokenizers::Tokenizer>> {
    let mut changed = false;
    for part in ["normalizer", "pre_tokenizer"] {
        changed |= file.get_mut(part).is_some_and(remove_prefix);
    }
    if changed { load(&file).map(Some) } else { Ok(None) }
}

fn load(file: &Value) -> Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(file.to_string()).map_err(failed)?;
    // A longer text is the caller's to refuse; padding is for batches.
    tokenizer.with_truncation(None).map_err(failed)?.with_padding(None);
    Ok(tokenizer)
}

/// Makes special tokens of those that begin or end a turn, which some files hold as plain ones.
fn mark_turns(file: &mut Value) {
    let mut plain: Vec<(String, u64)> = match &file["model"]["vocab"] {
        Value::Object(ids) => {
            ids.iter().filter_map(|(text, id)| Some((text.clone(), id.as_u64()?))).collect()
        }
        Value::Array(scored) => {
            (0..).zip(scored).filter_map(|(id, v)| Some((v[0].as_str()?.into(), id))).collect()
        }
        _ => Vec::new(),
    };
    plain.retain(|(text, _)| control::is_turn(text));
    let Some(fields) = file.as_object_mut() else { return };
    let added = fields.entry("added_tokens").or_insert(Value::Null);
    if added.is_null() {
        *added = json!([]);
    }
    let Some(added) = added.as_array_mut() else { return };
    for token in added.iter_mut() {
        let Some(text) = token["content"].as_str().map(String::from) else { continue };
        if control::is_turn(&text) && token.is_object() {
            token["special"] = true.into();
        }
        plain.retain(|(plain, _)| *plain != text);
    }
    plain.sort_by_key(|(_, id)| *id);
    added.extend(plain.into_iter().map(|(text, id)| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        })
    }));
}

/// Switches off what `part` and the parts within it put before a text; says whether there was any.
fn remove_prefix(part: &mut Value) -> bool {
    let mut changed = false;
    match part.get("type").and_then(Value::as_str) {
        Some("Prepend") if part["prepend"] != "" => {
            *part = json!({"type": "Sequence", "normalizers": []});
            return true;
        }
        Some("Metaspace") => {
            let says = |key: &str, value: Value| part.get(key) == Some(&value);
            changed =
                !(says("prepend_scheme", "never".into()) || says("add_prefix_space", false.into()));
            if let Some(fields) = part.as_object_mut().filter(|_| changed) {
                fields.remove("add_prefix_space");
                fields.insert("prepend_scheme".into(), "never".into());
            }
        }
        Some("ByteLevel") if part["add_prefix_space"] != false => {
            part["add_prefix_space"] = false.into();
            changed = true;
        }
        _ => {}
    }
    for list in ["normalizers", "pretokenizers"] {
        for inner in part.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            changed |= remove_prefix(inner);
        }
    }
    changed
}

/// Builds the tokenizer of a `tokenizer.json`.
pub(super) fn build(bytes: &[u8]) -> Result<Tokenizer> {
    check(bytes)?;
    let mut file: Value = serde_json::from_slice(bytes).map_err(|e| failed(e.into()))?;
    mark_turns(&mut file);
    let parsing = load(&file)?;
    let spelling = Spelling::of(parsing.get_decoder())?;
    let added = parsing.get_added_tokens_decoder();
    let is_special = |id: &u32| added.get(id).is_some_and(|token| token.special);
    let around = parsing.encode_fast("a", true).map_err(failed)?;
    let bos = around.get_ids().first().copied().filter(is_special);
    let add_eos = around.get_ids().last().is_some_and(is_special);

    let named =
        |name: &str| added.iter().find(|(_, t)| t.special && t.content == name).map(|(id, _)| *id);
    let mut end_of_generation = control::end_names().filter_map(named).collect::<Vec<_>>();
    let eos =
        around.get_ids().last().copied().filter(is_special).or(end_of_generation.first().copied());
    end_of_generation.extend(eos);
    end_of_generation.sort_unstable();
    end_of_generation.dedup();

    let table = table(&parsing, &spelling, is_special)?;
    let bare = without_prefix(file)?.map(|bare| Pipeline::new(bare, None));
    Ok(Tokenizer {
        encoder: Box::new(Pipeline::new(parsing, bare)),
        special: SpecialTokens::default(),
        table,
        bos,
        eos,
        add_bos: bos.is_some(),
        add_eos,
        space_prefix: spelling.space_prefix,
        end_of_generation,
    })
}

fn failed(e: tokenizers::Error) -> Error {
    Error::Tokenizer(format!("tokenizer.json: {e}"))
}

/// Refuses what the crate would stumble over.
fn check(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        continuing_subword_prefix: Option<String>,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| failed(e.into()))?;
    match file.model.continuing_subword_prefix.as_deref() {
        None | Some("") => Ok(()),
        Some(_) => Err(unsupported("a tokenizer.json with `continuing_subword_prefix`")),
    }
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported {
        what: what.into(),
        hint: "byte-level BPE and SentencePiece-style models are".into(),
    }
}

/// How the tokens spell bytes, told from the decoder.
#[derive(Default)]
struct Spelling {
    byte_level: bool,
    sentence_piece: bool,
    space_prefix: bool,
}

impl Spelling {
    fn of(decoder: Option<&DecoderWrapper>) -> Result<Self> {
        let mut spelling = Self::default();
        decoder.into_iter().for_each(|decoder| spelling.add(decoder));
        if spelling.byte_level == spelling.sentence_piece {
            return Err(unsupported("the decoder of this tokenizer.json"));
        }
        Ok(spelling)
    }

    fn add(&mut self, decoder: &DecoderWrapper) {
        match decoder {
            DecoderWrapper::Sequence(all) => {
                all.get_decoders().iter().for_each(|one| self.add(one))
            }
            DecoderWrapper::ByteLevel(_) => self.byte_level = true,
            DecoderWrapper::ByteFallback(_) | DecoderWrapper::Replace(_) => {
                self.sentence_piece = true
            }
            DecoderWrapper::Metaspace(space) => {
                self.sentence_piece = true;
                self.space_prefix = space.prepend_scheme != PrependScheme::Never;
            }
            DecoderWrapper::Strip(strip) => {
                self.space_prefix = strip.content == ' ' && strip.start > 0
            }
            _ => {}
        }
    }
}

fn table(
    tokenizer: &tokenizers::Tokenizer,
    spelling: &Spelling,
    is_special: impl Fn(&u32) -> bool,
) -> Result<TokenTable> {
    let vocab = tokenizer.get_vocab(true);
    let len = vocab.values().max().map_or(0, |id| id.saturating_add(1));
    if len == 0 || len > MAX_VOCAB {
        return Err(Error::Tokenizer(format!(
            "tokenizer.json: ids up to {len} are not a vocabulary"
        )));
    }
    let mut texts = vec![""; len as usize];
    for (text, id) in &vocab {
        texts[*id as usize] = text;
    }
    let added = tokenizer.get_added_tokens_decoder();
    let mut table = TokenTable::with_capacity(texts.len());
    for (id, text) in (0..).zip(texts) {
        if is_special(&id) {
            table.push(text.bytes(), Kind::Control);
        } else if added.contains_key(&id) && spelling.byte_level {
            table.push(text.bytes(), Kind::UserDefined);
        } else if added.contains_key(&id) {
            // The decoder sees it like any other.
            spm::token_bytes(text, Kind::UserDefined, &mut table);
        } else if spelling.byte_level {
            bpe::token_bytes(text, Kind::Normal, &mut table);
        } else {
            let kind = if spm::byte_of(text).is_some() { Kind::Byte } else { Kind::Normal };
            spm::token_bytes(text, kind, &mut table);
        }
    }
    Ok(table)
}
