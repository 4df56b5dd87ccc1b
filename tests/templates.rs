//! Chat templates of models in use, rendered as by transformers: tests/golden/templates.py says how
//! to get them.

use std::collections::BTreeMap;

use epiphyte::chat::{ChatTemplate, Message, Prompt};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::common::skip::skip;

#[derive(Deserialize)]
struct Golden {
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Conversation>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    #[serde(flatten)]
    context: Map<String, Value>,
}

/// A text, or why there is none.
#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Default)]
struct Row {
    equal: usize,
    refused_there: usize,
    refused: Vec<String>,
    different: Vec<String>,
}

#[test]
fn templates_in_use_render_as_in_transformers() {
    let Some(path) = std::env::var_os("EPIPHYTE_TEMPLATES") else {
        return skip(
            "others' templates: EPIPHYTE_TEMPLATES names what tests/golden/templates.py makes",
        );
    };
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut table = BTreeMap::<&str, Row>::new();
    for case in &golden.cases {
        let Conversation { messages, context } = &golden.conversations[&case.conversation];
        let prompt =
            Prompt { messages, context, add_generation_prompt: case.add_generation_prompt };
        let template =
            ChatTemplate::unchecked(Ok(Some(&golden.templates[&case.template])), "<s>", "</s>");
        let error = case.error.as_deref().unwrap_or_default();
        let row = table.entry(&case.template).or_default();
        match (&case.text, template.render_prompt(&prompt)) {
            (Some(text), Ok(rendered)) if *text == rendered => row.equal += 1,
            (Some(text), Ok(rendered)) => {
                row.different.push(difference(&case.conversation, text, &rendered))
            }
            (Some(_), Err(error)) => row.refused.push(format!("{}: {error}", case.conversation)),
            (None, Err(_)) => row.refused_there += 1,
            // Where Python has a generator, there is a list here.
            (None, Ok(_)) if error.contains("generator is not JSON") => row.refused_there += 1,
            (None, Ok(_)) => {
                row.different.push(format!(
                    "{}: renders what transformers refuses: {error}",
                    case.conversation
                ));
            }
        }
    }
    for (name, row) in &table {
        let Row { equal, refused_there, refused, different } = row;
        println!(
            "{name:<50} {equal:>3} equal {refused_there:>3} refused there {:>3} refused {:>3} \
            DIFFERENT",
            refused.len(),
            different.len()
        );
        refused.iter().chain(different).for_each(|line| println!("    {line}"));
    }
    assert!(table.len() >= 40, "{} templates", table.len());
    assert!(table.values().all(|row| row.different.is_empty()), "some differ");
}

/// Where two texts part.
fn difference(name: &str, expected: &str, got: &str) -> String {
    let same = expected.chars().zip(got.chars()).take_while(|(a, b)| a == b).count();
    let from = |text: &str| text.chars().skip(same.saturating_sub(20)).take(60).collect::<String>();
    format!("{name}: {:?} is {:?}", from(expected), from(got))
}
