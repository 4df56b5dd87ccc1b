//! Chats, texts, forks, and files of sessions.

use epiphyte_bindings::{EpiphyteError, Message, PromptOptions};
use pollster::block_on;

use super::{CONTEXT, PROMPT, SHARED, chat, engine, expected, greedy, rest, session, text};

#[test]
fn a_chat_is_rendered_and_held() {
    let rendered = block_on(SHARED.render_chat(chat(), PromptOptions::default())).unwrap();
    assert!(rendered.contains("Be brief.") && rendered.contains("Hi"), "{rendered}");
    let open = PromptOptions { add_generation_prompt: false, ..PromptOptions::default() };
    let without = block_on(SHARED.render_chat(chat(), open)).unwrap();
    assert!(rendered.starts_with(&without) && rendered.len() > without.len());
    let session = SHARED.session().unwrap();
    block_on(session.set_messages(chat())).unwrap();
    let held = session.token_count();
    block_on(session.set_messages(chat())).unwrap();
    assert_eq!(session.token_count(), held);
    assert_eq!(rest(&session.generate(greedy(4)).unwrap()).len(), 4);
}

#[test]
fn tokens_are_counted_as_a_session_holds_them() {
    let counted = block_on(SHARED.count_tokens(PROMPT.into())).unwrap();
    assert_eq!(session(&SHARED).token_count(), counted);
    assert!(block_on(SHARED.count_tokens(String::new())).unwrap() < counted);
}

#[test]
fn json_that_is_none_is_refused_without_being_quoted() {
    let session = SHARED.session().unwrap();
    let message =
        Message { extra_json: Some("{\"secret\": ".into()), ..Message::new("user", "Hi") };
    let context = PromptOptions { context_json: Some("[1]".into()), ..PromptOptions::default() };
    let errors = [
        (block_on(session.set_messages(vec![message])), "extra_json"),
        (block_on(session.set_prompt(chat(), context)), "context_json"),
    ];
    for (error, argument) in errors {
        match error {
            Err(EpiphyteError::InvalidArgument { name, text, .. }) => {
                assert!(name == argument && !text.contains("secret"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    // What a template does not use does no harm.
    let context =
        PromptOptions { context_json: Some("{\"tools\": []}".into()), ..PromptOptions::default() };
    block_on(session.set_prompt(chat(), context)).unwrap();
}

#[test]
fn a_fork_goes_on_by_itself() {
    let session = session(&SHARED);
    let fork = block_on(session.fork()).unwrap();
    let whole = rest(&session.generate(greedy(8)).unwrap());
    assert_eq!(whole, expected(8));
    assert_eq!(rest(&fork.generate(greedy(3)).unwrap()), whole[..3]);
    assert_eq!(session.token_count() - fork.token_count(), 5);
    session.close();
    assert_eq!(rest(&fork.generate(greedy(2)).unwrap()), whole[3..5]);
}

#[test]
fn tokens_are_pushed_and_cut() {
    let session = session(&SHARED);
    let ids = block_on(session.tokens()).unwrap();
    let other = SHARED.session().unwrap();
    block_on(other.push_tokens(ids.clone())).unwrap();
    assert_eq!(rest(&other.generate(greedy(3)).unwrap()), expected(3));
    block_on(other.truncate(1)).unwrap();
    assert_eq!(block_on(other.tokens()).unwrap(), ids[..1]);
    for wrong in [-1, 9_999_999] {
        let error = block_on(other.push_tokens(vec![wrong]));
        assert!(matches!(error, Err(EpiphyteError::InvalidArgument { .. })), "{error:?}");
    }
    let error = block_on(other.push_tokens(vec![ids[0]; CONTEXT as usize]));
    assert!(
        matches!(error, Err(EpiphyteError::ContextFull { needed: 257, capacity: CONTEXT, .. })),
        "{error:?}"
    );
    assert_eq!(other.token_count(), 1, "nothing was lost");
}

#[test]
fn a_session_is_saved_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let path = text(dir.path().join("session"));
    let session = session(&SHARED);
    let first = rest(&session.generate(greedy(3)).unwrap());
    block_on(session.save(path.clone())).unwrap();
    let engine = engine();
    let restored = block_on(engine.restore(path.clone())).unwrap();
    assert_eq!(restored.token_count(), session.token_count());
    let second = rest(&restored.generate(greedy(5)).unwrap());
    assert_eq!([first, second].concat(), expected(8));
    std::fs::write(&path, b"not a session").unwrap();
    let error = block_on(engine.restore(path)).err();
    assert!(matches!(error, Some(EpiphyteError::InvalidFile { .. })), "{error:?}");
}
