//! Chat templates: equal to Jinja2 as transformers uses it (tests/golden/chat.py), and safe with hostile ones.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use epiphyte::Error;
use epiphyte::chat::{ChatTemplate, Message};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    templates: HashMap<String, String>,
    conversations: Vec<Vec<Message>>,
    cases: Vec<Case>,
}

/// What the reference gives: a text or the template's own complaint.
#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: usize,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/chat.json")).unwrap()
}

fn user(content: &str) -> Vec<Message> {
    vec![Message::new("user", content)]
}

#[test]
fn templates_render_as_in_transformers() {
    let golden = golden();
    let new = |source: &String| ChatTemplate::new(Some(source), "<s>", "</s>").unwrap();
    let templates = golden.templates.iter().map(|(name, source)| (name, new(source))).collect::<HashMap<_, _>>();
    for case in &golden.cases {
        let messages = &golden.conversations[case.conversation];
        let rendered = templates[&case.template].render(messages, case.add_generation_prompt);
        let place = format!("{} {}", case.template, case.conversation);
        match (&case.text, &case.error, rendered) {
            (Some(text), None, Ok(rendered)) => assert_eq!(&rendered, text, "{place}"),
            (None, Some(error), Err(Error::ChatTemplate(reason))) => {
                assert!(reason.starts_with(error), "{place} {reason}")
            }
            (text, error, rendered) => panic!("{place}: {text:?} {error:?} {rendered:?}"),
        }
    }
    assert!(golden.cases.iter().any(|case| case.error.is_some()) && golden.cases.len() >= 120);
}

#[test]
fn chatml_is_what_smollm2_has_after_its_system_message() {
    let golden = golden();
    let chatml = ChatTemplate::new(None, "", "").unwrap();
    let with_system =
        |case: &&Case| case.template == "smollm2" && golden.conversations[case.conversation][0].role == "system";
    let cases = golden.cases.iter().filter(with_system).collect::<Vec<_>>();
    assert!(cases.len() >= 4);
    for case in cases {
        let rendered = chatml.render(&golden.conversations[case.conversation], case.add_generation_prompt).unwrap();
        assert_eq!(Some(rendered), case.text);
    }
}

#[test]
fn templates_that_do_not_parse_are_refused_at_load() {
    for source in ["{% for %}", "{{ 'a' ", "{% if x %}", "{% endfor %}", "a\n{{ 1 + }}", "{% unknown %}"] {
        let error = ChatTemplate::new(Some(source), "", "").unwrap_err();
        assert!(matches!(&error, Error::ChatTemplate(reason) if reason.contains("syntax error")), "{source} {error}");
    }
    let nested = format!("{}1{}", "{{ ".to_owned() + &"(".repeat(50_000), ")".repeat(50_000) + " }}");
    assert!(ChatTemplate::new(Some(&nested), "", "").is_err());
    let nested = "{% if 1 %}".repeat(20_000) + &"{% endif %}".repeat(20_000);
    assert!(ChatTemplate::new(Some(&nested), "", "").is_err());
    assert!(ChatTemplate::new(Some(&" ".repeat(1 << 20)), "", "").is_err());
}

/// Work, output or nesting without end, and values that are not there.
const ENDLESS: [&str; 13] = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set n = namespace(x='a') %}{% for i in range(100) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x=['a']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson(2) }}",
    "{{ 'a' * 100000000000 }}",
    "{{ range(10000000000) | list }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ missing.field.of.nothing }}",
    "{{ messages[0].content.nothing() }}",
];

#[test]
fn hostile_templates_end_in_an_error_soon() {
    for source in ENDLESS {
        let template = ChatTemplate::new(Some(source), "", "").unwrap();
        let start = Instant::now();
        let rendered = template.render(&user("hello"), true);
        let took = start.elapsed();
        let text = rendered.as_ref().map(|text| &text[..text.len().min(80)]);
        assert!(matches!(rendered, Err(Error::ChatTemplate(_))), "{source}: {text:?}");
        // Unoptimised code has room too.
        assert!(took < Duration::from_secs(2), "{source}: {took:?}");
    }
}

#[test]
fn deep_values_do_not_exhaust_the_stack() {
    for end in [
        "",
        "{{ n.x | tojson }}",
        "{{ n.x }}",
        "{{ n.x == n.x }}",
        "{{ n.x | string }}",
        "{% if n.x in [n.x] %}{% endif %}",
    ] {
        let source =
            "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}".to_owned() + end;
        let template = ChatTemplate::new(Some(&source), "", "").unwrap();
        // Either is fine; a crash is not.
        let _ = template.render(&user("hello"), true);
    }
}

#[test]
fn errors_quote_the_template_and_not_the_conversation() {
    let secret = "my secret";
    for source in [
        "{{ raise_exception('no: ' + messages[0].content) }}",
        "{{ messages[0].content | int }}",
        "{{ messages[0].content + 1 }}",
        "{{ [][messages[0].content] .x }}",
        "{{ messages[0][messages[0].content].x }}",
        "{{ messages[0].content | map(messages[0].content) | list }}",
        "{{ strftime_now(messages[0].content + '%Q') }}",
    ] {
        let template = ChatTemplate::new(Some(source), "", "").unwrap();
        let error = template.render(&user(secret), true).unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("line 1"), "{source}: {error}");
    }
    let template = ChatTemplate::new(Some("{{ raise_exception('Only short messages') }}"), "", "").unwrap();
    let error = template.render(&user(secret), true).unwrap_err().to_string();
    assert_eq!(error, "chat template: Only short messages in line 1");
}

#[test]
fn long_conversations_render() {
    let golden = golden();
    let messages = (0..2000).flat_map(|_| [Message::new("user", "q".repeat(500)), Message::new("assistant", "a")]);
    let messages = messages.collect::<Vec<_>>();
    for name in ["smollm2", "llama-3", "qwen2", "gemma"] {
        let template = ChatTemplate::new(Some(&golden.templates[name]), "<s>", "</s>").unwrap();
        assert!(template.render(&messages, true).unwrap().len() > 1_000_000, "{name}");
    }
}

#[test]
fn today_is_a_date() {
    let template = ChatTemplate::new(Some("{{ strftime_now('%Y-%m-%d') }}"), "", "").unwrap();
    let today = template.render(&[], false).unwrap();
    let parts = today.split('-').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    assert!(parts.len() == 3 && parts[0] >= 2025 && (1..=12).contains(&parts[1]) && (1..=31).contains(&parts[2]));
}
