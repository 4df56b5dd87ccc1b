//! Records into ids and weights.

use std::collections::HashMap;

use epiphyte::Error;
use epiphyte::chat::{ChatTemplate, Message};
use epiphyte::format::gguf::Gguf;
use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
use epiphyte::train::data::{DataOptions, Dataset, Encoder, Record};

use super::{
    BOS, END, EOS, chatml, examples, options, record, tokenizer, tokenizer_with, weighing,
};
use crate::common;

fn chat(turns: &[(&str, &str)]) -> Record {
    let messages = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    Record::Chat { messages, context: Default::default() }
}

fn golden_template(name: &str) -> ChatTemplate {
    #[derive(serde::Deserialize)]
    struct Golden {
        templates: HashMap<String, String>,
    }
    let golden: Golden = serde_json::from_str(include_str!("../golden/chat.json")).unwrap();
    ChatTemplate::new(Some(&golden.templates[name]), "<s>", "</s>").unwrap()
}

#[test]
fn a_pair_weighs_its_completion_and_the_end() {
    let tokenizer = tokenizer();
    let pair = record(r#"{"prompt":"Q:","completion":" no","id":7}"#);
    for weight in [0.0, 0.1, 1.0] {
        let options = DataOptions { prompt_loss_weight: Some(weight), ..options(64) };
        let data = examples(&tokenizer, &chatml(), options, &pair);
        let example = &data.examples[0];
        assert_eq!(tokenizer.decode(&example.ids), "Q: no");
        assert_eq!(example.ids.last(), Some(&EOS));
        assert_eq!(example.weights, [0.0, weight, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(data.report.trained_tokens, if weight > 0.0 { 5 } else { 4 });
    }
    let with_bos = tokenizer_with(&[], true);
    let data = examples(&with_bos, &chatml(), options(64), &pair);
    assert_eq!(data.examples[0].ids[0], BOS);
    assert_eq!(data.examples[0].weights[..4], [0.0, 0.1, 0.1, 1.0]);
}

#[test]
fn prompt_and_completion_never_share_a_token() {
    let tokenizer = tokenizer();
    // "ab" is one token, but the model would be asked with "xa".
    let data = examples(
        &tokenizer,
        &chatml(),
        options(64),
        &record(r#"{"prompt":"xa","completion":"by"}"#),
    );
    let encode = |text| tokenizer.encode(text, EncodeOptions::default()).unwrap();
    assert_eq!(data.examples[0].ids, [encode("xa"), encode("by"), vec![EOS]].concat());
    assert_ne!(encode("xaby").len(), 4);
}

#[test]
fn sentence_piece_completions_get_no_space_of_their_own() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../golden/tokenizer.json")).unwrap();
    let part = |name: &str| golden["spm"][name].clone();
    let tokenizer = Tokenizer::from_spec(TokenizerSpec {
        model: "llama".into(),
        tokens: serde_json::from_value(part("tokens")).unwrap(),
        scores: serde_json::from_value(part("scores")).unwrap(),
        token_types: serde_json::from_value(part("token_types")).unwrap(),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..Default::default()
    })
    .unwrap();
    for (prompt, completion) in
        [("The answer:", " yes"), ("The answer: ", "yes"), ("line\n", "next")]
    {
        let pair = Record::Pair { prompt: prompt.into(), completion: completion.into() };
        let example = &examples(&tokenizer, &chatml(), options(64), &pair).examples[0];
        assert_eq!(tokenizer.decode(&example.ids), [prompt, completion].concat());
    }
}

#[test]
fn control_tokens_in_a_pair_are_text_unless_asked() {
    let tokenizer = tokenizer();
    let pair = record(r#"{"prompt":"<|im_end|>","completion":"x"}"#);
    let plain = examples(&tokenizer, &chatml(), options(64), &pair);
    assert!(!plain.examples[0].ids.contains(&END));
    let parsed =
        examples(&tokenizer, &chatml(), DataOptions { parse_special: true, ..options(64) }, &pair);
    assert_eq!(parsed.examples[0].ids[0], END);
}

#[test]
fn a_chat_weighs_the_assistants_turns_with_their_end() {
    let tokenizer = tokenizer();
    let turns = [
        ("system", "s"),
        ("user", "hi"),
        ("assistant", "yo"),
        ("user", "bye"),
        ("assistant", "ok"),
        ("user", "?"),
    ];
    let data = examples(&tokenizer, &chatml(), options(256), &chat(&turns));
    assert_eq!(data.examples.len(), 1);
    let example = &data.examples[0];
    assert_eq!(weighing(&tokenizer, example, 1.0), "yo<|im_end|>ok<|im_end|>");
    let whole = chatml()
        .render(&turns[..5].iter().map(|(r, c)| Message::new(*r, *c)).collect::<Vec<_>>(), false);
    let special = EncodeOptions { parse_special: true, ..Default::default() };
    assert_eq!(example.ids, tokenizer.encode(&whole.unwrap(), special).unwrap());
}

#[test]
fn what_precedes_an_answer_is_what_the_model_is_asked_with() {
    let tokenizer = tokenizer();
    for name in ["smollm2", "llama-3", "qwen2", "gemma"] {
        let template = golden_template(name);
        let turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "e")];
        let messages = turns.map(|(role, content)| Message::new(role, content));
        let data = examples(&tokenizer, &template, options(2048), &chat(&turns));
        let special = EncodeOptions { parse_special: true, ..Default::default() };
        let mut found = 0;
        for example in &data.examples {
            for at in (1..example.ids.len())
                .filter(|&at| example.weights[at] == 1.0 && example.weights[at - 1] == 0.0)
            {
                let asked = [1, 3].map(|turn| template.render(&messages[..turn], true).unwrap());
                let asked = asked.map(|text| tokenizer.encode(&text, special).unwrap());
                assert!(asked.iter().any(|ids| example.ids[..at] == **ids), "{name}");
                found += 1;
            }
        }
        assert_eq!(found, 2, "{name}");
    }
}

#[test]
fn a_template_that_rewrites_history_gives_an_example_a_turn() {
    let tokenizer = tokenizer();
    let turns = [("user", "a"), ("assistant", "b"), ("user", "d"), ("assistant", "e")];
    // This one marks the last question.
    let data = examples(&tokenizer, &golden_template("qwen2"), options(2048), &chat(&turns));
    let learnt =
        data.examples.iter().map(|example| weighing(&tokenizer, example, 1.0)).collect::<Vec<_>>();
    assert_eq!(learnt, ["b<|im_end|>", "e<|im_end|>"]);
    assert_eq!(data.report.records, 1);
    assert!(
        data.clone().split(epiphyte::train::data::Validation::Count(1), 0).is_err(),
        "one record stays together"
    );
}

#[test]
fn a_template_without_an_end_of_turn_gets_the_end_of_text() {
    let tokenizer = tokenizer();
    let source = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if \
        add_generation_prompt %}a:{% endif %}";
    let template = ChatTemplate::new(Some(source), "", "").unwrap();
    let turns = [("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w")];
    let data = examples(&tokenizer, &template, options(64), &chat(&turns));
    assert_eq!(weighing(&tokenizer, &data.examples[0], 1.0), "y;w;</s>");
}

#[test]
fn an_answer_of_no_tokens_is_none() {
    let tokenizer = tokenizer();
    let template =
        ChatTemplate::new(Some("{% for m in messages %}{{ m.content }}{% endfor %}"), "", "")
            .unwrap();
    let record = chat(&[("user", "x"), ("assistant", ""), ("user", "y"), ("assistant", "")]);
    let data = examples(&tokenizer, &template, options(64), &record);
    assert_eq!(data.examples[0].weights, [0.0, 0.0, 1.0]);
    assert_eq!(data.examples[0].ids.last(), Some(&EOS));
    let data = examples(&tokenizer, &template, options(2), &record);
    assert_eq!((data.examples.len(), data.report.dropped), (0, 1));
}

#[test]
fn a_template_that_does_not_continue_its_prompt_is_refused() {
    let (tokenizer, template) = (tokenizer(), golden_template("blocks"));
    let encoder = Encoder::new(&tokenizer, &template, 4096, options(64)).unwrap();
    let error = Dataset::default()
        .push(&chat(&[("user", "secret"), ("assistant", "answer")]), &encoder)
        .unwrap_err();
    assert!(
        matches!(&error, Error::ChatTemplate(reason) if reason.contains("`completion`")),
        "{error}"
    );
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn a_chat_without_an_answer_is_refused() {
    let (tokenizer, template) = (tokenizer(), chatml());
    let encoder = Encoder::new(&tokenizer, &template, 4096, options(64)).unwrap();
    let mut data = Dataset::default();
    let error = data.push(&chat(&[("user", "secret")]), &encoder).unwrap_err();
    assert!(error.to_string().contains("`assistant`"), "{error}");
    assert_eq!(data, Dataset::default());
}

#[test]
fn the_middle_is_learnt_between_the_vocabularys_own_tokens() {
    let names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"];
    let tokenizer = tokenizer_with(&names, false);
    let fim = record(r#"{"prefix":"f(","middle":"x","suffix":")"}"#);
    let data = examples(&tokenizer, &chatml(), options(64), &fim);
    let example = &data.examples[0];
    let shown = epiphyte::tokenizer::DecodeOptions { show_special: true, ..Default::default() };
    assert_eq!(
        tokenizer.decode_with(&example.ids, shown),
        "<fim_prefix>f(<fim_suffix>)<fim_middle>x</s>"
    );
    assert_eq!(weighing(&tokenizer, example, 1.0), "x</s>");
    // The first token is predicted from nothing.
    assert_eq!(weighing(&tokenizer, example, 0.1), "f(<fim_suffix>)<fim_middle>");
    let without = super::tokenizer();
    let template = chatml();
    let encoder = Encoder::new(&without, &template, 4096, options(64)).unwrap();
    let error = Dataset::default().push(&fim, &encoder).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { hint, .. } if hint.contains("vocabulary")),
        "{error}"
    );
}

#[test]
fn long_texts_become_windows_that_predict_every_token_once() {
    let tokenizer = tokenizer_with(&[], true);
    let text = "the quick brown fox jumps over the lazy dog";
    for seq_len in [2, 3, 7, 44, 45, 46, 100] {
        let data =
            examples(&tokenizer, &chatml(), options(seq_len), &Record::Text { text: text.into() });
        let mut all = vec![BOS];
        for (i, example) in data.examples.iter().enumerate() {
            assert!(
                example.ids.len() <= seq_len
                    && (i + 1 == data.examples.len() || example.ids.len() == seq_len)
            );
            assert_eq!(example.ids.first(), all.last());
            assert!(
                example.weights[0] == 0.0
                    && example.weights[1..].iter().all(|&weight| weight == 1.0)
            );
            all.extend(&example.ids[1..]);
        }
        let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
        assert_eq!(all, [ids, vec![EOS]].concat());
    }
}

#[test]
fn long_examples_are_cut_dropped_or_refused() {
    let tokenizer = tokenizer();
    let pair = record(r#"{"prompt":"12345","completion":"6789"}"#);
    let data = examples(&tokenizer, &chatml(), options(7), &pair);
    assert_eq!(tokenizer.decode(&data.examples[0].ids), "1234567");
    assert_eq!((data.report.cut, data.report.dropped, data.report.tokens), (1, 0, 7));
    // No matter what the prompt weighs, without its answer it is dropped.
    let data = examples(
        &tokenizer,
        &chatml(),
        DataOptions { prompt_loss_weight: Some(1.0), ..options(5) },
        &pair,
    );
    assert_eq!((data.report.cut, data.report.dropped, data.examples.len()), (1, 1, 0));
    let template = chatml();
    let encoder =
        Encoder::new(&tokenizer, &template, 4096, DataOptions { truncate: false, ..options(9) })
            .unwrap();
    let mut data = Dataset::default();
    assert!(data.push(&pair, &encoder).unwrap_err().to_string().contains("longer than 9 tokens"));
    assert_eq!(data, Dataset::default());
    data.push(&record(r#"{"prompt":"1234","completion":"6789"}"#), &encoder).unwrap();
    assert_eq!((data.report.cut, data.examples[0].ids.len()), (0, 9));
}

#[test]
fn a_prompt_weighs_nothing_where_records_are_few() {
    let (tokenizer, template) = (tokenizer(), chatml());
    let line = r#"{"prompt":"1234","completion":"5"}"#;
    let trained = |records: usize, prompt_loss_weight| {
        let options = DataOptions { prompt_loss_weight, ..options(64) };
        let encoder = Encoder::new(&tokenizer, &template, 4096, options).unwrap();
        let lines = format!("{line}\n").repeat(records);
        let data =
            Dataset::read_jsonl_from(lines.as_bytes(), "x".as_ref(), &encoder, |_, _| {}).unwrap();
        data.report.trained_tokens / records
    };
    assert_eq!([1, 199, 200].map(|records| trained(records, None)), [2, 2, 5]);
    assert_eq!([1, 199, 200].map(|records| trained(records, Some(0.1))), [5; 3], "as asked");
    assert_eq!(trained(200, Some(0.0)), 2);
}

#[test]
fn options_are_checked() {
    let (tokenizer, template) = (tokenizer(), chatml());
    for weight in [-0.1, 1.5, f32::NAN, f32::INFINITY] {
        let options = DataOptions { prompt_loss_weight: Some(weight), ..options(64) };
        let error = Encoder::new(&tokenizer, &template, 4096, options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { name: "prompt_loss_weight", .. }));
    }
    for seq_len in [0, 1, 4097] {
        let error = Encoder::new(&tokenizer, &template, 4096, options(seq_len)).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { name: "seq_len", .. }));
    }
}

#[test]
fn the_default_model_learns_answers_as_it_is_asked_for_them() {
    let Some(path) = common::model_path() else { return };
    let gguf = Gguf::open(path).unwrap();
    let tokenizer = Tokenizer::from_spec(TokenizerSpec::from_gguf(&gguf).unwrap()).unwrap();
    let source: &str = gguf.get("tokenizer.chat_template").unwrap();
    let text = |id: Option<u32>| tokenizer.token_text(id.unwrap()).unwrap();
    let template =
        ChatTemplate::new(Some(source), text(tokenizer.bos()), text(tokenizer.eos())).unwrap();
    let turns = [
        ("user", "What is 2+2?"),
        ("assistant", "\n\nIt is 4."),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ];
    let data = examples(&tokenizer, &template, options(512), &chat(&turns));
    assert_eq!(data.examples.len(), 1);
    let learnt = weighing(&tokenizer, &data.examples[0], 1.0);
    assert_eq!(learnt, "\n\nIt is 4.<|im_end|>Yes.<|im_end|>");
    let asked = template.render(&[Message::new("user", "What is 2+2?")], true).unwrap();
    let special = EncodeOptions { parse_special: true, ..Default::default() };
    let asked = tokenizer.encode(&asked, special).unwrap();
    assert_eq!(data.examples[0].ids[..asked.len()], asked);
    let encoder = Encoder::new(&tokenizer, &template, 2048, options(64)).unwrap();
    let fim = record(r#"{"prefix":"a","middle":"b","suffix":"c"}"#);
    assert!(matches!(Dataset::default().push(&fim, &encoder), Err(Error::Unsupported { .. })));
}

/// The example of a line of JSON, and the texts of its tokens with a weight, by weight.
fn learnt(line: &str, weight: f32) -> String {
    let tokenizer = tokenizer();
    let data = examples(&tokenizer, &chatml(), options(512), &record(line));
    data.examples.iter().map(|example| weighing(&tokenizer, example, weight)).collect()
}

#[test]
fn weights_of_messages_count() {
    let line = |more: &str| {
        let last = r#"{"role":"user","content":"c","weight":0},{"role":"assistant","content":"d"}"#;
        format!(
            r#"{{"messages":[{{"role":"user","content":"a"}},{{"role":"assistant","content":"b"{more}}},{last}]}}"#
        )
    };
    for more in [
        r#","weight":0"#,
        r#","train":false"#,
        r#","training":false,"weight":1"#,
        r#","weight":0.0"#,
    ] {
        assert_eq!(learnt(&line(more), 1.0), "d<|im_end|>", "{more}");
    }
    for more in
        ["", r#","weight":1"#, r#","train":true"#, r#","weight":null"#, r#","id":7,"name":"n""#]
    {
        assert_eq!(learnt(&line(more), 1.0), "b<|im_end|>d<|im_end|>", "{more}");
    }
    assert_eq!(learnt(&line(r#","weight":2.5"#), 2.5), "b<|im_end|>");
}

#[test]
fn conversations_are_read_in_the_shapes_in_which_people_have_them() {
    for line in [
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b"}]}"#,
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],"id":"x"}"#,
        r#"{"conversations":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"source":"y"}"#,
        r#"{"instruction":"a","input":"","output":"b","text":"rendered elsewhere"}"#,
        r#"{"instruction":"a","output":"b"}"#,
        r#"{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}]}"#,
    ] {
        let data = examples(&tokenizer(), &chatml(), options(512), &record(line));
        let whole = tokenizer().decode_with(
            &data.examples[0].ids,
            epiphyte::tokenizer::DecodeOptions { show_special: true, ..Default::default() },
        );
        assert_eq!(
            whole, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
            "{line}"
        );
        assert_eq!(learnt(line, 1.0), "b<|im_end|>", "{line}");
    }
    let asked = r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"x"},{"role":"user","content":"y"}],"completion":[{"role":"assistant","content":"b"}]}"#;
    assert_eq!(learnt(asked, 1.0), "b<|im_end|>");
    let Record::Chat { messages, .. } = record(
        r#"{"system":"s","instruction":"a","input":"i","output":"b","history":[["q","r"]]}"#,
    ) else {
        panic!("no chat")
    };
    let said = messages.iter().map(|m| (m.role.as_str(), m.text())).collect::<Vec<_>>();
    let expected =
        [("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "a\ni"), ("assistant", "b")];
    assert_eq!(said, expected.map(|(role, text)| (role, text.to_owned())));
}

#[test]
fn templates_get_tools_and_calls() {
    let source = "{{ tools[0] }}{{ documents }}{{ mood }}{% for m in messages %}<|im_start|>{{ \
        m.content or '' }}\
                  {{ m.tool_calls[0] if m.tool_calls }}<|im_end|>{% endfor %}{% if \
                  add_generation_prompt %}<|im_start|>{% endif %}";
    let template = ChatTemplate::new(Some(source), "", "").unwrap();
    let line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":["call"]},
        {"role":"tool","tool_call_id":"1","content":"t"},{"role":"assistant","content":"b"}],
        "tools":"[\"hammer\"]","documents":["d"],"chat_template_kwargs":{"mood":"calm"}}"#;
    let tokenizer = tokenizer();
    let data = examples(&tokenizer, &template, options(512), &record(line));
    assert_eq!(weighing(&tokenizer, &data.examples[0], 1.0), "call<|im_end|>b<|im_end|>");
    assert!(tokenizer.decode(&data.examples[0].ids).starts_with("hammer['d']calm"));
}

#[test]
fn sentence_pieces_are_those_of_the_whole_text() {
    let mut tokens =
        ["<unk>", "<s>", "</s>", "▁", "a", "b", ":", "▁b", "▁a"].map(String::from).to_vec();
    tokens.extend(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"].map(String::from));
    let kinds = [2, 3, 3, 1, 1, 1, 1, 1, 1, 3, 3, 3].to_vec();
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let spec = TokenizerSpec {
        model: "llama".into(),
        tokens,
        scores: Some(scores),
        token_types: Some(kinds),
        ..Default::default()
    };
    let tokenizer =
        Tokenizer::from_spec(TokenizerSpec { bos: Some(1), eos: Some(2), unk: Some(0), ..spec })
            .unwrap();
    let ids =
        |line| examples(&tokenizer, &chatml(), options(64), &record(line)).examples[0].ids.clone();
    assert_eq!(ids(r#"{"prompt":"a:","completion":" b"}"#), [1, 8, 6, 7, 2]);
    assert_eq!(ids(r#"{"prompt":"a:","completion":"b"}"#), [1, 8, 6, 5, 2]);
    // A token would lie across the border: the model is asked with the space.
    assert_eq!(ids(r#"{"prompt":"a: ","completion":"b"}"#), [1, 8, 6, 3, 5, 2]);
    assert_eq!(ids(r#"{"prefix":"a","middle":"b","suffix":" b"}"#), [1, 9, 4, 10, 7, 11, 5, 2]);
}
