//! Files into datasets: what is read, skipped and refused.

use std::path::{Path, PathBuf};

use epiphyte::Error;
use epiphyte::tokenizer::EncodeOptions;
use epiphyte::train::data::{DataOptions, Dataset, Encoder, Validation};
use tempfile::TempDir;

use super::{EOS, chatml, options, tokenizer};

fn write(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn jsonl(bytes: &[u8], options: DataOptions) -> Result<Dataset, Error> {
    let ((_dir, path), tokenizer, template) = (write(bytes), tokenizer(), chatml());
    Dataset::read_jsonl(path, &Encoder::new(&tokenizer, &template, 4096, options).unwrap())
}

fn text(bytes: &[u8], seq_len: usize) -> Result<Dataset, Error> {
    let ((_dir, path), tokenizer, template) = (write(bytes), tokenizer(), chatml());
    Dataset::read_text(path, &Encoder::new(&tokenizer, &template, 4096, options(seq_len)).unwrap())
}

const PAIR: &str = r#"{"prompt":"Q:","completion":" no"}"#;

#[test]
fn every_kind_of_record_is_read_beside_the_others() {
    let file = format!(
        "\u{feff}{PAIR}\n\n  {}\r\n{}",
        r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}"#,
        r#"{"text":"abc"}"#
    );
    let data = jsonl(file.as_bytes(), options(64)).unwrap();
    assert_eq!((data.report.records, data.report.examples, data.report.skipped), (3, 3, 0));
    assert_eq!(
        data.report.tokens,
        data.examples.iter().map(|example| example.ids.len()).sum::<usize>()
    );
}

#[test]
fn bad_lines_are_named_by_number_and_never_quoted() {
    let cases: [(&[u8], &str); 8] = [
        (br#"{"prompt":"secret""#, "not JSON"),
        (br#"secret"#, "not JSON"),
        (br#"["secret"]"#, "not an object"),
        (br#"{"prompt":"secret"}"#, "`completion`"),
        (br#"{"prompt":"secret","completion":3}"#, "`completion`"),
        (br#"{"messages":[{"role":"user","content":"secret"}]}"#, "`assistant`"),
        (br#"{"messages":"secret"}"#, "`messages`"),
        (b"secret \xe9", "UTF-8 from byte 7"),
    ];
    for (line, says) in cases {
        let file = [PAIR.as_bytes(), b"\n", line, b"\n", PAIR.as_bytes()].concat();
        let error = jsonl(&file, options(64)).unwrap_err().to_string();
        assert!(
            error.contains("line 2: ") && error.contains(says) && !error.contains("secret"),
            "{error}"
        );
        let data = jsonl(&file, DataOptions { skip_bad: true, ..options(64) }).unwrap();
        assert_eq!((data.report.examples, data.report.skipped), (2, 1));
        assert!(data.report.first_skipped.unwrap().contains(says));
    }
}

#[test]
fn a_file_with_nothing_to_learn_is_refused() {
    let skip = DataOptions { skip_bad: true, ..options(64) };
    let cases: [(&[u8], DataOptions, &str); 5] = [
        (b"", options(64), "no examples"),
        (b"\n \n", options(64), "no examples"),
        (b"x\ny\n", skip, "all of its 2 lines were skipped; line 1: not JSON"),
        (PAIR.as_bytes(), options(2), "none has an answer left"),
        (br#"{"text":""}"#, options(64), "none has an answer left"),
    ];
    for (file, options, says) in cases {
        let error = jsonl(file, options).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidFile { reason, .. } if reason.contains(says)),
            "{error}"
        );
    }
    assert!(text(b"", 64).unwrap_err().to_string().contains("no examples"));
}

#[test]
fn a_long_example_is_refused_by_its_line_when_it_may_not_be_cut() {
    let file = format!("{PAIR}\n{}", r#"{"prompt":"secret","completion":"secret"}"#);
    let error = jsonl(file.as_bytes(), DataOptions { truncate: false, ..options(8) })
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 2: `seq_len`") && !error.contains("secret"), "{error}");
    assert_eq!(jsonl(file.as_bytes(), options(8)).unwrap().report.cut, 1);
}

#[test]
fn a_line_without_end_is_not_taken_into_memory() {
    let file = [vec![b'x'; 17 << 20], b"\n".to_vec(), PAIR.as_bytes().to_vec()].concat();
    assert!(jsonl(&file, options(64)).unwrap_err().to_string().contains("line 1: longer than"));
    let data = jsonl(&file, DataOptions { skip_bad: true, ..options(64) }).unwrap();
    assert_eq!((data.report.examples, data.report.skipped), (1, 1));
}

#[test]
fn a_text_file_is_one_document_whatever_its_size() {
    let line = "all work and no play makes a dull boy\n";
    // With lines and without, and more than two pieces of 1 MiB.
    for document in [line.repeat(60_000), line.trim_end().replace(' ', "-").repeat(65_000)] {
        let tokenizer = tokenizer();
        let data = text(document.as_bytes(), 1000).unwrap();
        let mut ids = vec![data.examples[0].ids[0]];
        data.examples.iter().for_each(|example| ids.extend(&example.ids[1..]));
        assert_eq!(ids.pop(), Some(EOS));
        assert!(tokenizer.decode(&ids) == document);
        if document.contains('\n') {
            assert!(ids == tokenizer.encode(&document, EncodeOptions::default()).unwrap());
        }
    }
}

#[test]
fn a_text_file_that_is_not_utf8_is_refused_where_it_stops_being_so() {
    assert!(text(b"caf\xe9 au lait", 64).unwrap_err().to_string().contains("byte 3"));
    let long = [vec![b'x'; (1 << 20) + 5], vec![0xff], vec![b'x'; 10]].concat();
    assert!(text(&long, 64).unwrap_err().to_string().contains("byte 1048581"));
    // A character across the edge of a piece is whole (and not in this vocabulary, so it is no
    // token).
    let across = [vec![b'x'; (1 << 20) - 1], "é".as_bytes().to_vec(), vec![b'x'; 10]].concat();
    assert_eq!(text(&across, 64).unwrap().report.trained_tokens, (1 << 20) - 1 + 10);
    assert!(text(&across[..1 << 20], 64).unwrap_err().to_string().contains("byte 1048575"));
}

#[test]
fn files_that_are_not_there_or_folders_are_refused() {
    let (tokenizer, template) = (tokenizer(), chatml());
    let encoder = Encoder::new(&tokenizer, &template, 4096, options(64)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Dataset::read_jsonl(dir.path(), &encoder), Err(Error::InvalidFile { .. })));
    assert!(matches!(Dataset::read_text(dir.path().join("none"), &encoder), Err(Error::Io { .. })));
    assert!(matches!(Dataset::read_jsonl(Path::new("/none"), &encoder), Err(Error::Io { .. })));
}

#[test]
fn a_split_is_seeded_and_loses_nothing() {
    let file = (0..50)
        .map(|i| format!("{{\"prompt\":\"{i}:\",\"completion\":\"x\"}}\n"))
        .collect::<String>();
    let data = jsonl(file.as_bytes(), options(64)).unwrap();
    let split = |validation, seed| data.clone().split(validation, seed).unwrap();
    let (train, held_out) = split(Validation::Fraction(0.1), 1);
    assert_eq!((train.examples.len(), held_out.examples.len()), (45, 5));
    assert_eq!(held_out.report.records, 5);
    assert_eq!(split(Validation::Count(5), 1), (train.clone(), held_out.clone()));
    assert_ne!(split(Validation::Count(5), 2).1.examples, held_out.examples);
    let mut all = train.clone();
    all.append(held_out);
    assert_eq!(all.report.tokens, data.report.tokens);
    assert!(data.examples.iter().all(|example| all.examples.contains(example)));
    assert_ne!(train.fingerprint(), data.fingerprint());
    for bad in [
        Validation::Fraction(0.0),
        Validation::Fraction(1.0),
        Validation::Fraction(f64::NAN),
        Validation::Fraction(-1.0),
        Validation::Count(50),
        Validation::Count(0),
    ] {
        assert!(
            matches!(
                data.clone().split(bad, 0),
                Err(Error::InvalidArgument { name: "validation", .. })
            ),
            "{bad:?}"
        );
    }
}

#[test]
fn what_would_change_the_lesson_is_refused_by_name() {
    let answer = r#"{"role":"assistant","content":"y"}"#;
    let chat = |message: &str, more: &str| format!(r#"{{"messages":[{message},{answer}]{more}}}"#);
    let user = r#"{"role":"user","content":"secret"}"#;
    let with = |key: &str| format!(r#"{{"role":"user","content":"secret",{key}}}"#);
    // Columns that are empty in this row change nothing.
    let empty =
        r#","tools":[],"documents":null,"images":[],"text":null,"prompt":null,"category":"any""#;
    let whole = chat(&with(r#""tool_calls":null,"annotations":[],"refusal":null"#), empty);
    assert_eq!(jsonl(whole.as_bytes(), options(512)).unwrap().report.examples, 1);
    let cases = [
        (
            chat(&with(r#""tool_calls":[{"function":{"name":"secret"}}]"#), ""),
            "message 1: `tool_calls`",
        ),
        (chat(&with(r#""reasoning_content":"secret""#), ""), "message 1: `reasoning_content`"),
        (chat(&with(r#""mask":true"#), ""), "message 1: `mask`"),
        (chat(&with(r#""loss":false"#), ""), "message 1: `loss`"),
        (chat(&with(r#""weight":1"#), ""), "message 1: "),
        (chat(&with(r#""weight":-1"#), ""), "`weight`"),
        (chat(&with(r#""train":"secret""#), ""), "`train`"),
        (
            chat(r#"{"role":"user","content":[{"type":"image_url"}]}"#, ""),
            "message 1: a part of `content` has type `image_url`",
        ),
        (chat(user, r#","tools":[{"name":"secret"}]"#), "`tools`"),
        (chat(user, r#","tools":{"name":"secret"}"#), "`tools` is not a list"),
        (chat(user, r#","chat_template_kwargs":{"mood":"secret"}"#), "`mood`"),
        (chat(user, r#","functions":[{"name":"secret"}]"#), "`functions`"),
        (chat(user, r#","weight":"secret""#), "`weight`"),
        (chat(r#"{"from":"secret","value":"secret"}"#, ""), "`from`"),
        (r#"{"prompt":"secret","chosen":"secret","rejected":"secret"}"#.into(), "`chosen`"),
        (r#"{"prompt":"secret","completion":"secret","label":false}"#.into(), "`label`"),
        (r#"{"prompt":"secret","completion":"secret","system":"secret"}"#.into(), "`system`"),
        (r#"{"prompt":"secret","completion":null}"#.into(), "`completion` is null"),
        (
            r#"{"question":"secret","answer":"secret"}"#.into(),
            "`question`, `answer`; give `messages`",
        ),
        (r#"{"instruction":"secret","response":"secret"}"#.into(), "`output`"),
        (r#"{"prefix":"secret","middle":"a","suffix":"b"}"#.into(), "vocabulary has no tokens"),
        (r#"{"text":["secret"]}"#.into(), "`text` is not a text"),
    ];
    for (line, says) in cases {
        let file = format!("{PAIR}\n{line}\n");
        let error = jsonl(file.as_bytes(), options(64)).unwrap_err().to_string();
        assert!(
            error.contains("line 2: ") && error.contains(says) && !error.contains("secret"),
            "{line}: {error}"
        );
        let data = jsonl(file.as_bytes(), DataOptions { skip_bad: true, ..options(64) }).unwrap();
        assert_eq!((data.report.examples, data.report.skipped), (1, 1), "{line}");
        assert!(data.report.first_skipped.unwrap().contains(says), "{line}");
    }
}

#[test]
fn weights_of_records_count() {
    let weighed = |weight: &str| {
        let file =
            format!("{PAIR}\n{}", PAIR.replace('}', &format!(r#","weight":{weight},"id":1}}"#)));
        jsonl(file.as_bytes(), options(64)).unwrap()
    };
    let (plain, half) = (weighed("1"), weighed("0.5"));
    assert_eq!(plain.examples[0], plain.examples[1]);
    let halved = plain.examples[1].weights.iter().map(|weight| weight * 0.5).collect::<Vec<_>>();
    assert_eq!(
        (&half.examples[1].ids, &half.examples[1].weights),
        (&plain.examples[1].ids, &halved)
    );
    let none = weighed("0");
    assert_eq!((none.examples.len(), none.report.dropped, none.report.skipped), (1, 1, 0));
}

#[test]
fn data_comes_from_any_reader() {
    let (tokenizer, template) = (tokenizer(), chatml());
    let encoder = Encoder::new(&tokenizer, &template, 4096, options(64)).unwrap();
    let mut records = 0;
    let data =
        Dataset::read_jsonl_from(PAIR.as_bytes(), Path::new("pipe"), &encoder, |_, _| records += 1)
            .unwrap();
    assert_eq!((data.report.examples, records), (1, 1));
    let error =
        Dataset::read_jsonl_from(&b"{"[..], Path::new("pipe"), &encoder, |_, _| {}).unwrap_err();
    assert!(error.to_string().starts_with("pipe: line 1: not JSON"), "{error}");
    assert_eq!(
        Dataset::read_text_from(&b"abc"[..], Path::new("pipe"), &encoder).unwrap().report.records,
        1
    );
}
