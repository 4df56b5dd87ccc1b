//! A template as Jinja2 with transformers' extension would read it, spelt for the engine.

use std::borrow::Cow;

use minijinja::machinery::{Token, ast, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::NAME;
use crate::error::{Error, Result};

/// Bytes of a template; the longest in use are about 30 KiB.
const MAX_SOURCE_BYTES: usize = 1 << 16;
/// Tokens between `{{` and `}}`: operators in a row nest as deeply as there are of them.
const MAX_TAG_TOKENS: usize = 2048;

/// `source` with the line ends that Jinja2 makes of all others, and with blocks that the engine
/// knows in place of transformers' `{% generation %}`, which prints its body in a scope of its own.
pub(super) fn normalised(source: &str) -> Result<Cow<'_, str>> {
    let mut source = Cow::Borrowed(source);
    if source.contains('\r') {
        source = source.replace("\r\n", "\n").replace('\r', "\n").into();
    }
    if source.len() > MAX_SOURCE_BYTES {
        return Err(Error::ChatTemplate(format!(
            "{} bytes are too many for a template",
            source.len()
        )));
    }
    if !source.contains("generation") {
        return Ok(source);
    }
    let mut text = source.clone().into_owned();
    let mut is_start = false;
    let mut found = Vec::new();
    for token in tokenize(&source, false, syntax()?) {
        // What does not parse is said by `parsed`.
        let Ok((token, span)) = token else { break };
        match token {
            Token::Ident("generation") if is_start => found.push((span, "with")),
            Token::Ident("endgeneration") if is_start => found.push((span, "endwith")),
            _ => {}
        }
        is_start = matches!(token, Token::BlockStart);
    }
    for (span, block) in found.into_iter().rev() {
        text.replace_range(span.start_offset as usize..span.end_offset as usize, block);
    }
    Ok(text.into())
}

fn syntax() -> Result<SyntaxConfig> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.map_err(|e| Error::ChatTemplate(e.to_string()))
}

/// Parses a normalised source.
pub(super) fn parsed(source: &str) -> Result<ast::Stmt<'_>> {
    let syntax = syntax()?;
    let refused = |e| {
        let remedy = "ask the model's maker, or give another with `--chat-template`";
        Error::ChatTemplate(format!("{e}; {remedy}"))
    };
    let mut tokens = 0;
    for token in tokenize(source, false, syntax.clone()) {
        tokens = match token.map_err(refused)?.0 {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
            _ => tokens + 1,
        };
        if tokens > MAX_TAG_TOKENS {
            return Err(Error::ChatTemplate("one of its expressions is too long".into()));
        }
    }
    parse(source, NAME, syntax).map_err(refused)
}
