//! Chat templates: equal to Jinja2 as transformers uses it (tests/golden/chat.py), and safe with
//! hostile ones.

use std::collections::HashMap;

use epiphyte::Error;
use epiphyte::chat::{ChatTemplate, Message};
use serde::Deserialize;

use crate::common::ends;

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
    let templates = golden
        .templates
        .iter()
        .map(|(name, source)| (name, new(source)))
        .collect::<HashMap<_, _>>();
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
fn python_in_templates_is_python() {
    let cases: Vec<(String, String)> =
        serde_json::from_str(include_str!("golden/jinja.json")).unwrap();
    assert!(cases.len() >= 14);
    for (source, expected) in cases {
        let template = ChatTemplate::new(Some(&source), "", "").unwrap();
        // transformers passes none for tools.
        assert_eq!(template.render(&user("hello"), true).unwrap(), expected, "{source}");
    }
}

#[test]
fn what_the_engine_lacks_is_refused_by_name() {
    for (source, name) in [
        ("{{ messages | xmlattr }}", "`xmlattr`"),
        ("{{ 'a' is odd_one }}", "`odd_one`"),
        ("{{ 'a'.encode('utf-8') }}", "`encode`"),
        ("{{ cycler('a') }}", "`cycler`"),
        ("{{ '{:>4}'.format('a') }}", "`format()`"),
        ("{{ missing | tojson }}", "`tojson`"),
    ] {
        let error = ChatTemplate::new(Some(source), "", "")
            .and_then(|template| template.render(&user("secret"), true));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("line 1"), "{source}: {error}");
    }
}

#[test]
fn a_template_that_is_not_used_refuses_nothing() {
    let template = ChatTemplate::unchecked(Ok(Some("{% if")), "", "");
    assert!(
        matches!(template.check(), Err(Error::ChatTemplate(reason)) if reason.contains("--chat-template"))
    );
    assert!(matches!(template.render(&user("a"), true), Err(Error::ChatTemplate(_))));
}

#[test]
fn messages_are_those_of_transformers() {
    let message = |json| serde_json::from_str::<Message>(json).unwrap();
    let render = |source, message: Message| {
        ChatTemplate::new(Some(source), "", "").unwrap().render(&[message], true).unwrap()
    };
    // Keys that are null are not there, reasoning has each of its names, weights are the trainer's.
    let odd =
        message(r#"{"role":"assistant","content":null,"reasoning":"r","weight":0,"train":false}"#);
    let shown = "{{ messages[0].content is defined }}{{ messages[0].keys() | list }}{{ \
        messages[0].reasoning_content }}";
    assert_eq!(render(shown, odd), "False['thinking', 'role', 'reasoning', 'reasoning_content']r");
    let parts =
        r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
    assert_eq!(render("{{ messages[0].content + '!' }}", message(parts)), "a\nb!");
    assert_eq!(render("{{ messages[0].content }}", message(parts)), "a\nb");
    let knows = "{% if messages[0].content is string %}s{% else %}{% for p in messages[0].content \
        %}{{ p.text }}{% endfor %}{% endif %}";
    assert_eq!(render(knows, message(parts)), "ab");
    assert_eq!(serde_json::to_string(&message(parts)).unwrap(), parts);
    for (json, says) in [
        (
            r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"secret"}}]}"#,
            "`image_url`",
        ),
        (r#"{"role":"user","content":[{"type":"secret"}]}"#, "`type`"),
        (r#"{"role":"user","content":3}"#, "`content`"),
        (r#"{"content":"secret"}"#, "`role`"),
    ] {
        let error = serde_json::from_str::<Message>(json).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("secret"), "{json}: {error}");
    }
}

#[test]
fn chatml_is_what_smollm2_has_after_its_system_message() {
    let golden = golden();
    let chatml = ChatTemplate::new(None, "", "").unwrap();
    let with_system = |case: &&Case| {
        case.template == "smollm2" && golden.conversations[case.conversation][0].role == "system"
    };
    let cases = golden.cases.iter().filter(with_system).collect::<Vec<_>>();
    assert!(cases.len() >= 4);
    for case in cases {
        let rendered = chatml
            .render(&golden.conversations[case.conversation], case.add_generation_prompt)
            .unwrap();
        assert_eq!(Some(rendered), case.text);
    }
}

#[test]
fn templates_that_do_not_parse_are_refused_at_load() {
    for source in
        ["{% for %}", "{{ 'a' ", "{% if x %}", "{% endfor %}", "a\n{{ 1 + }}", "{% unknown %}"]
    {
        let error = ChatTemplate::new(Some(source), "", "").unwrap_err();
        assert!(
            matches!(&error, Error::ChatTemplate(reason) if reason.contains("syntax error")),
            "{source} {error}"
        );
    }
    let nested =
        format!("{}1{}", "{{ ".to_owned() + &"(".repeat(50_000), ")".repeat(50_000) + " }}");
    assert!(ChatTemplate::new(Some(&nested), "", "").is_err());
    let nested = "{% if 1 %}".repeat(20_000) + &"{% endif %}".repeat(20_000);
    assert!(ChatTemplate::new(Some(&nested), "", "").is_err());
    assert!(ChatTemplate::new(Some(&" ".repeat(1 << 20)), "", "").is_err());
}

/// Work, output or nesting without end, and values that are not there.
const ENDLESS: [&str; 41] = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m(1) }}",
    "{% for a in [[[]]] recursive %}{{ loop([[a, a]]) }}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(100) %}{% set n.x = n.x + n.x %}{% endfor \
    %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor \
    %}{{ n.x }}",
    "{{ 'a' * 100000000000 }}",
    "{{ [1] * 100000000 }}",
    "{{ [1] * 100000000 == [1] * 100000000 }}",
    "{{ 2 in [1] * 100000000 }}",
    "{% if 2 in [1] * 100000000 %}{% endif %}",
    "{{ 1 < 2 in [1] * 100000000 }}",
    "{{ [1] * 100000000 | length }}",
    "{{ [1] * 1000 * 1000 * 100 }}",
    "{% for a in [1] * 100000000 %}{% endfor %}",
    "{{ range(10000000000) | list }}",
    "{{ range(99999) | map('default', range(99999)) | map('list') | list }}",
    "{{ range(99999) | map('string') | map('indent', 1000000000) | list }}",
    "{{ range(9) | batch(10000000000, 'x') | list }}",
    "{{ range(9) | slice(10000000000) | list }}",
    "{{ 'a' | indent(10000000000, true) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ ('{0}' * 100000).format('a' * 1000000) }}",
    "{{ ('%(a)s' * 100000) | format(a='a' * 1000000) }}",
    "{{ 'a'.join(range(99999)).join(range(99999)) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{% set n = namespace(x=1) %}{% set n.x = n %}{{ n }}",
    "{% set n = namespace(x=1) %}{% set n.x = [{'a': n}] %}{{ n == n }}",
    "{% set n = namespace(x=1) %}{% for n.x in [n] %}{{ n }}{% endfor %}",
    "{% for i in range(99999) %}{{ ['A' * 64000] * 150 | sort | length }}{% endfor %}",
    "{% for i in range(99999) %}{{ (['A' * 64000] * 150) | sort | length }}{% endfor %}",
    "{% for i in range(99999) %}{{ (['A' * 6400] * 1000) | unique | list | length }}{% endfor %}",
    "{% for i in range(99999) %}{{ (['A' * 64] * 30000) | groupby('a') | list | length }}{% \
    endfor %}",
    "{{ missing.field.of.nothing }}",
    "{{ messages[0].content.nothing() }}",
    "{{ [1, 2] | sum(start=[]) }}",
];

/// Ways to make a list of itself.
const GROW: [&str; 12] = [
    "n.x + n.x",
    "n.x * 2",
    "[n.x, n.x]",
    "(n.x, n.x)",
    "{'a': n.x, 'b': n.x}",
    "dict(a=n.x, b=n.x)",
    "[n.x] * 2",
    "(n.x + n.x)[::-1]",
    "[n.x, n.x] | reverse",
    "(n.x + n.x) | batch(2) | list",
    "[1, 2] | map('default', n.x) | list + [n.x, n.x]",
    "[namespace(a=n.x), namespace(a=n.x)]",
];

/// Ways to go through one.
const USE: [&str; 24] = [
    "{{ n.x }}",
    "{{ n.x ~ '' }}",
    "{{ '' ~ n.x }}",
    "{{ n.x == n.y }}",
    "{{ n.x != n.y }}",
    "{{ n.x < n.y }}",
    "{{ 1 < n.x < n.y }}",
    "{{ n.x in [n.y, n.y] }}",
    "{{ [n.x] is in([n.y]) }}",
    "{{ {n.x: 1}[n.y] }}",
    "{{ n.x is eq(n.y) }}",
    "{{ n.x | string }}",
    "{{ n.x | join }}",
    "{{ ','.join(n.x) }}",
    "{{ n.x | sort | length }}",
    "{{ [n.x, n.y] | sort | length }}",
    "{{ [n.x, n.y] | unique | list }}",
    "{{ [n.x, n.y] | max }}",
    "{{ [n.x, n.y].count(n.x) }}",
    "{{ n.x | tojson }}",
    "{{ n.x | tojson(2) }}",
    "{{ n.x | list | length }}",
    "{{ [n.x] | select('in', [n.y]) | list }}",
    "{% for a in n.x %}{{ a }}{% endfor %}",
];

fn assert_refused(source: &str) {
    let rendered = ends(source, || {
        ChatTemplate::new(Some(source), "", "")
            .and_then(|template| template.render(&user("hello"), true))
    });
    let text = rendered.as_ref().map(|text| &text[..text.len().min(80)]);
    assert!(matches!(rendered, Err(Error::ChatTemplate(_))), "{source}: {text:?}");
}

#[test]
fn hostile_templates_end_in_an_error() {
    for source in ENDLESS {
        assert_refused(source);
    }
}

#[test]
fn lists_that_hold_themselves_many_times_are_refused() {
    for grow in GROW {
        for end in USE {
            let start = "{% set n = namespace(x=['a'], y=['b']) %}".to_owned();
            assert_refused(
                &(start
                    + "{% for i in range(100) %}{% set n.x = "
                    + grow
                    + " %}{% endfor %}"
                    + end),
            );
        }
    }
}

/// Every use is within the budget, but there are many.
#[test]
fn work_on_a_large_list_is_paid_for_each_time() {
    for grow in ["n.x + n.x", "[n.x, n.x]"] {
        for end in USE {
            let list = |name, last| {
                let grow = grow.replace("n.x", name);
                format!(
                    "{{% set {name} = ['{last}'] %}}{{% for i in range(12) %}}{{% set {name} = \
                    {grow} %}}{{% endfor %}}"
                )
            };
            let lists = "{% set n = namespace(x=1, y=1) %}".to_owned()
                + &list("n.x", "a")
                + &list("n.y", "a");
            assert_refused(&(lists + "{% for j in range(99999) %}" + end + "{% endfor %}"));
        }
    }
    let text = "{% set a = 'a' * 1000000 %}{% set b = 'a' * 1000000 %}{% for i in range(99999) %}"
        .to_owned();
    for end in
        ["a == b", "a[999999]", "a[-1]", "a[999999:]", "a[::-1]", "a is lower", "a < b", "b in a"]
    {
        assert_refused(&format!("{text}{{% if {end} %}}{{% endif %}}{{% endfor %}}"));
    }
    let pairs = |n| (0..n).map(|i| format!("a{i}=1")).collect::<Vec<_>>().join(",");
    let names = |n| (0..n).map(|i| format!("{{% set n.b{i}=1 %}}")).collect::<String>();
    for end in [
        "{% if n %}{% endif %}",
        "{{ n and 1 }}",
        "{{ not n }}",
        "{{ 1 if n }}",
        "{{ n | length }}",
    ] {
        let many = |kwargs, sets| {
            let start = format!("{{% set n = namespace({}) %}}{}", pairs(kwargs), names(sets));
            assert_refused(&(start + "{% for i in range(99999) %}" + end + "{% endfor %}"));
        };
        many(100, 100);
        many(3000, 1);
        many(1, 3000);
    }
}

#[test]
fn deep_values_do_not_exhaust_the_stack() {
    for grow in ["[n.x]", "[n.x[:]]", "n.x[:]", "n.x * 1", "n.x + []", "n.x | reverse", "{1: n.x}"]
    {
        for end in [
            "",
            "{{ n.x | tojson }}",
            "{{ n.x }}",
            "{{ n.x == n.x }}",
            "{% if n.x in [n.x] %}{% endif %}",
        ] {
            let start =
                "{% set n = namespace(x=[1]) %}{% for i in range(99999) %}{% set n.x = ".to_owned();
            assert_refused(&(start + grow + " %}{% endfor %}" + end));
        }
    }
    for long in [
        "1".to_owned() + &"+1".repeat(30_000),
        "x".to_owned() + &".x".repeat(30_000),
        "x".to_owned() + &"|list".repeat(10_000),
    ] {
        assert!(ChatTemplate::new(Some(&("{{ ".to_owned() + &long + " }}")), "", "").is_err());
        let short = long.split_inclusive(['+', '.', '|']).take(500).collect::<String>() + "x";
        let _ = ChatTemplate::new(Some(&("{{ ".to_owned() + &short + " }}")), "", "")
            .map(|t| t.render(&[], true));
    }
}

/// Parsing and compiling are not counted, so the length of a template and of its expressions bounds
/// them.
#[test]
fn the_longest_templates_come_to_an_end() {
    for (open, term, close) in [
        ("{{ x", "+1", " }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", " and 1", " }}"),
        ("{{ 1", " == 1", " }}"),
        ("{{ [1", ",1", "] == [1] }}"),
        ("{{ [1]", "+[1]", " }}"),
        ("{{ [1]", "*9", " }}"),
        ("{{ x", "|list", " }}"),
        ("{{ x", ".x", " }}"),
        ("{{ x", "[0]", " }}"),
        ("{% set x", ",x", " = 1 %}"),
        ("{{ '", "a", "' * 9999 }}"),
        ("{% if 1 %}", "{{ 1 }}", "{% endif %}"),
    ] {
        let tag = open.to_owned() + &term.repeat(390) + close;
        let source = tag.repeat((1 << 16) / tag.len());
        let _ = ends(&tag, || {
            ChatTemplate::new(Some(&source), "", "").map(|template| template.render(&[], true))
        });
    }
}

#[test]
fn lists_of_lists_slices_and_sums_are_those_of_python() {
    for (source, expected) in [
        (
            "{{ [1, 2] + [3] }} {{ ([1] + [2])[::-1] }} {{ [0] * 3 }} {{ (1, 2) + (3,) }} {{ (1,) \
            }} {{ '{} {}'.format(1, 'a') }}",
            "[1, 2, 3] [2, 1] [0, 0, 0] (1, 2, 3) (1,) 1 a",
        ),
        (
            "{{ 'abcdef'[1:-1] }} {{ 'abcdef'[::-2] }} {{ 'abc'[5:] }} {{ 'abc'[-9:2] }}",
            "bcde fdb  ab",
        ),
        (
            "{{ [1, 2, 3, 4][-3:] }} {{ [1, 2, 3, 4][3:0:-1] }} {{ [1, 2][:0] }}",
            "[2, 3, 4] [4, 3, 2] []",
        ),
        (
            "{{ ([[1], [2, 3]] + [[4]]) | map('length') | sum }} {{ [{'a': 1}, {'a': 2}] | \
            sum(attribute='a') }}",
            "4 3",
        ),
        (
            "{% set n = namespace(l=[]) %}{% for m in messages %}{% set n.l = n.l + [m.role] %}{% \
            endfor %}{{ n.l }}",
            "['user']",
        ),
        ("{% for a, b in {'x': [1, 2]}.items() %}{{ a }}{{ b[1] }}{% endfor %}", "x2"),
    ] {
        let template = ChatTemplate::new(Some(source), "", "").unwrap();
        assert_eq!(template.render(&user("hello"), true).unwrap(), expected, "{source}");
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
    let template =
        ChatTemplate::new(Some("{{ raise_exception('Only short messages') }}"), "", "").unwrap();
    let error = template.render(&user(secret), true).unwrap_err().to_string();
    assert_eq!(error, "chat template: Only short messages in line 1");
}

#[test]
fn long_conversations_render() {
    let golden = golden();
    let messages = (0..2000)
        .flat_map(|_| [Message::new("user", "q".repeat(500)), Message::new("assistant", "a")]);
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
    assert!(
        parts.len() == 3
            && parts[0] >= 2025
            && (1..=12).contains(&parts[1])
            && (1..=31).contains(&parts[2])
    );
}
