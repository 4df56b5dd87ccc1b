//! What an answer must look like, and which tokens may come next: schemas, regular expressions and
//! grammars by the crate `llguidance`.
//!
//! A grammar is followed on the processor, a token at a time, and gives a bit a token; what may not
//! come is taken out of the logits before one is drawn. Control tokens spell nothing that a grammar of
//! text asks for, unless a Lark grammar names one: else none comes but those that end an answer, where
//! the grammar may end.

#![cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only sessions follow a grammar"))]

mod schema;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory, panic_utils};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Between the tokens of JSON: a space, or a line with its indentation. Without an end to it, small
/// models write white space until they run out of tokens.
const WHITESPACE: &str = r" |\n[ \t]{0,32}";
/// Longer tokens are never chosen: the trie of the vocabulary has room for no more.
const MAX_TOKEN_BYTES: usize = 1000;

/// From so many tokens before the last one that may come, an answer is led to its end.
const CLOSING: usize = 64;
/// What closes something, in this order: of JSON, whose texts they are.
const CLOSERS: [&str; 5] = ["}", "]", "\"", ":", ","];

/// Characters of what is wrong with a format; a compiler may repeat all of it.
const MAX_REASON: usize = 300;

/// What an answer must look like. The answer ends where this does, so that what came whole is
/// always valid, and is led there when tokens get few; one that ended for another reason ([`crate::engine::FinishReason`]) may be cut.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum ResponseFormat {
    /// JSON of this schema: draft 2020-12, or what its `$schema` says. A keyword that can't be held
    /// is refused, whatever `x-guidance` says of it.
    JsonSchema(Value),
    /// A text that this regular expression matches whole, in the syntax of the crate `regex`,
    /// without look-around.
    Regex(String),
    /// A text of this grammar, from its rule `start`, in `llguidance`'s dialect of Lark.
    Lark(String),
}

impl ResponseFormat {
    /// A JSON schema as text.
    ///
    /// Errors: [`Error::InvalidArgument`] for what is no JSON.
    pub fn json_schema(text: &str) -> Result<Self> {
        let schema = serde_json::from_str(text);
        schema.map(Self::JsonSchema).map_err(|e| invalid(&format!("the schema is no JSON: {e}")))
    }

    /// That it compiles, for any vocabulary; a grammar that names a control token of a model's is
    /// refused here.
    ///
    /// Errors: [`Error::InvalidArgument`] naming what is wrong with it.
    pub fn check(&self) -> Result<()> {
        Grammars::of(ApproximateTokEnv::single_byte_env())?.compile(self).map(drop)
    }

    /// A schema as part of a Lark grammar.
    pub(crate) fn embedded(schema: &Value) -> Value {
        prepared(schema)
    }

    fn grammar(&self) -> TopLevelGrammar {
        TopLevelGrammar::from_grammar(match self {
            Self::JsonSchema(schema) => GrammarWithLexer::from_json_schema(prepared(schema)),
            Self::Regex(pattern) => GrammarWithLexer::from_regex(pattern),
            Self::Lark(grammar) => GrammarWithLexer::from_lark(grammar.clone()),
        })
    }
}

/// The schema in known words, with our white space unless it has its own, and nothing of it that
/// counts left out.
fn prepared(schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema::simplify(&mut schema);
    let own =
        schema.as_object_mut().map(|keys| keys.entry("x-guidance").or_insert_with(|| json!({})));
    if let Some(own) = own.and_then(Value::as_object_mut) {
        if !own.keys().any(|key| key.starts_with("whitespace")) {
            own.insert("whitespace_pattern".into(), WHITESPACE.into());
        }
        own.insert("lenient".into(), false.into());
    }
    schema
}

/// Compiles grammars for a vocabulary.
pub(crate) struct Grammars(ParserFactory);

impl Grammars {
    /// For a model of `vocab` tokens, those of `tokenizer` first.
    ///
    /// Errors: [`Error::Unsupported`] where no token ends an answer.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let ids = 0..vocab as u32;
        let ends: Vec<u32> = ids.clone().filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        let &[first, ..] = &ends[..] else {
            return Err(Error::Unsupported {
                what: "a response format without a token that ends an answer".into(),
                hint: "take a model whose vocabulary has one".into(),
            });
        };
        let words: Vec<Vec<u8>> = ids.map(|id| spelling(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, first), &words);
        Self::of(Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends))))
    }

    fn of(vocabulary: TokEnv) -> Result<Self> {
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            guarded(|| ParserFactory::new(&vocabulary, InferenceCapabilities::default(), &slices))?;
        // Errors would hold the answer so far.
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        factory.quiet();
        Ok(Self(factory))
    }

    /// At its beginning.
    ///
    /// Errors: [`Error::InvalidArgument`] naming what is wrong with it.
    pub(crate) fn compile(&self, format: &ResponseFormat) -> Result<Grammar> {
        let parser = guarded(|| self.0.create_parser(format.grammar()))?;
        let (matcher, mask) = (Matcher::new(Ok(parser)), SimpleVob::new());
        let mut grammar = Grammar { matcher, mask, way: Vec::new(), closing: CLOSING };
        grammar.look_ahead()?;
        Ok(grammar)
    }
}

/// What a token adds to a text; control tokens are marked as such, with their names.
fn spelling(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let mark = tokenizer.is_special(id).then_some(TokTrie::SPECIAL_TOKEN_MARKER);
    if bytes.len() > MAX_TOKEN_BYTES {
        Vec::new()
    } else {
        mark.into_iter().chain(bytes.iter().copied()).collect()
    }
}

/// A grammar and how far an answer has come in it.
pub(crate) struct Grammar {
    matcher: Matcher,
    mask: SimpleVob,
    /// Tokens that lead to an end from here, the last one first; empty where none are known.
    way: Vec<u32>,
    /// Tokens left when a way is looked for.
    closing: usize,
}

impl Grammar {
    /// The tokens that may come next, a bit each.
    pub(crate) fn mask(&self) -> &[u32] {
        self.mask.as_slice()
    }

    /// Nothing may follow.
    pub(crate) fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Takes the next token.
    ///
    /// Errors: [`Error::InvalidArgument`] for one that may not come, or where what may follow takes
    /// too long to find out.
    pub(crate) fn accept(&mut self, id: u32) -> Result<()> {
        // The matcher's own words may hold the answer.
        let lost = "a token came that may not, or what may follow takes too long to find out";
        self.matcher.consume_token(id).map_err(|_| invalid(lost))?;
        self.look_ahead()
    }

    /// Takes `drawn`, or where that leads to no end within the `left` tokens that may come, this one
    /// among them, the next on a way that does, if one is known. Gives what it took.
    ///
    /// Errors: as [`Grammar::accept`].
    pub(crate) fn take(&mut self, drawn: u32, left: usize) -> Result<u32> {
        if left > self.closing {
            return self.accept(drawn).map(|()| drawn);
        }
        if self.way.last() != Some(&drawn) {
            let mut ahead = self.fork();
            if ahead.accept(drawn).is_ok() && ahead.find_way(left - 1) {
                *self = ahead;
                return Ok(drawn);
            }
        }
        if self.way.is_empty() {
            // A search walks as far as there are tokens, and rarely finds what the last one did not.
            self.closing = left / 2;
        }
        let id = self.way.pop().unwrap_or(drawn);
        self.accept(id).map(|()| id)
    }

    /// What may come next, and then after each of `tokens` as far as they may come and something may
    /// follow; the grammar stays where it is.
    pub(crate) fn ahead(&self, tokens: &[u32]) -> Vec<Vec<u32>> {
        let (mut masks, mut ahead) = (vec![self.mask().to_vec()], self.fork());
        for &token in tokens {
            let may_come = ahead.mask.is_allowed(token);
            if !may_come || ahead.accept(token).is_err() || ahead.is_over() {
                break;
            }
            masks.push(ahead.mask().to_vec());
        }
        masks
    }

    /// From here, without a way.
    fn fork(&self) -> Self {
        let (matcher, mask) = (self.matcher.clone(), self.mask.clone());
        Self { matcher, mask, way: Vec::new(), closing: self.closing }
    }

    /// Looks for at most so many tokens that lead to an end; not always the fewest.
    fn find_way(&mut self, most: usize) -> bool {
        let mut ahead = self.fork();
        let mut way = Vec::new();
        while !ahead.is_over() {
            let next = ahead.towards_end().filter(|_| way.len() < most);
            let Some(id) = next.filter(|&id| ahead.accept(id).is_ok()) else { return false };
            way.push(id);
        }
        way.reverse();
        self.way = way;
        true
    }

    /// Of the tokens that may come, one that is likely to be near the end.
    fn towards_end(&mut self) -> Option<u32> {
        let vocabulary = self.matcher.tok_env().ok()?;
        let trie = vocabulary.tok_trie();
        let forced = self.matcher.compute_ff_bytes();
        let spelt = (!forced.is_empty()).then(|| trie.prefix_token_id(&forced).0);
        let closing = CLOSERS.iter().filter_map(|text| trie.token_id(text.as_bytes()));
        let mut known = trie.eos_tokens().iter().copied().chain(spelt).chain(closing);
        // Else what says most: where so many characters must come, that is soon over.
        let length = |id: u32| {
            let bytes = trie.token(id);
            if bytes.first().is_some_and(u8::is_ascii_whitespace) { 0 } else { bytes.len() }
        };
        known
            .find(|&id| self.mask.is_allowed(id))
            .or_else(|| self.mask.iter().max_by_key(|&id| (length(id), std::cmp::Reverse(id))))
    }

    fn look_ahead(&mut self) -> Result<()> {
        if !self.is_over() {
            let lost = "what may follow takes too long to find out";
            self.mask = self.matcher.compute_mask().map_err(|_| invalid(lost))?;
        }
        let reason = self.matcher.stop_reason();
        if reason.is_ok() { Ok(()) } else { Err(invalid(&format!("it can't be held: {reason}"))) }
    }
}

fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T> {
    panic_utils::catch_unwind(AssertUnwindSafe(work)).map_err(|e| invalid(&e.to_string()))
}

/// On one line, without where in the compiler it came from.
fn invalid(reason: &str) -> Error {
    let reason = reason.split("<backtrace>").next().unwrap_or_default();
    let words: Vec<&str> = reason.split_whitespace().collect();
    let mut reason = words.join(" ");
    if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
        reason.truncate(end);
        reason.push('\u{2026}');
    }
    Error::InvalidArgument { name: "response_format", reason }
}
