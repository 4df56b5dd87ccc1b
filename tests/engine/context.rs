//! Conversations that outgrow the context: what is dropped, and that what is kept is as if nothing
//! else had been said.

use epiphyte::chat::{Message, Prompt};
use epiphyte::engine::ContextPolicy;
use epiphyte::{Error, FinishReason, Sequence, Session, generate_batch};
use serde_json::Map;

use super::{CONTEXT, SHARED, alone, generate, greedy, prompt};

/// A system message and so many questions, with answers to all but the last.
fn conversation(turns: usize) -> Vec<Message> {
    let mut messages = vec![Message::new("system", "Be kind.")];
    for turn in 0..turns {
        messages.push(Message::new("user", format!("Q{turn}?")));
        messages.push(Message::new("assistant", format!("A{turn}.")));
    }
    messages.pop();
    messages
}

/// The system message and the turns from `first` on, as ids.
fn ids(messages: &[Message], first: usize) -> Vec<u32> {
    let kept = [&messages[..1], &messages[1 + 2 * first..]].concat();
    let prompt = Prompt { messages: &kept, context: &Map::new(), add_generation_prompt: true };
    let base = SHARED.base();
    base.chat_template.tokenize(&prompt, &base.tokenizer).unwrap()
}

fn dropping() -> Session {
    let mut session = SHARED.session();
    session.set_context_policy(ContextPolicy::DropOldest);
    session
}

/// The first turn that is there, where as few are dropped as leave a quarter of the context free
/// beside `more` tokens.
fn first_kept(messages: &[Message], more: usize) -> usize {
    (0..).find(|&first| ids(messages, first).len() + more <= CONTEXT - CONTEXT / 4).unwrap()
}

/// Turns of which the context has room for all.
fn most() -> usize {
    (1..).take_while(|&turns| ids(&conversation(turns), 0).len() < CONTEXT).last().unwrap()
}

#[test]
fn too_many_turns_are_an_error_unless_some_may_go() {
    let long = conversation(most() + 1);
    let mut refusing = SHARED.session();
    refusing.set_messages(&conversation(2)).unwrap();
    let before = refusing.tokens().to_vec();
    let longer = conversation(most() + 3);
    assert!(matches!(refusing.set_messages(&longer), Err(Error::ContextFull { .. })));
    assert_eq!(refusing.tokens(), before);

    let mut session = dropping();
    let fits = conversation(most());
    session.set_messages(&fits).unwrap();
    assert_eq!(session.tokens(), ids(&fits, 0), "none goes while there is room");
    let first = first_kept(&long, 0);
    session.set_messages(&long).unwrap();
    assert!(first > 1);
    assert_eq!(session.tokens(), ids(&long, first));
    let expected = alone(session.tokens(), greedy(20));
    assert_eq!(generate(&mut session, greedy(20)), expected);
    // What has gone stays away, so that what is there need not be computed again.
    let next = conversation(most() + 2);
    session.set_messages(&next).unwrap();
    assert_eq!(session.tokens(), ids(&next, first));
    // Another conversation begins at its beginning.
    let mut other = conversation(3);
    other[1] = Message::new("user", "Else?");
    session.set_messages(&other).unwrap();
    assert_eq!(session.tokens(), ids(&other, 0));
}

#[test]
fn an_answer_goes_on_without_the_oldest_turns() {
    let messages = conversation(most());
    let start = ids(&messages, 0);
    let room = CONTEXT - start.len();
    // What it says until the context is full, and then after what is kept.
    let mut expected = alone(&start, greedy(room)).ids;
    let first = first_kept(&messages, expected.len());
    let kept = [ids(&messages, first), expected.clone()].concat();
    expected.extend(alone(&kept, greedy(30)).ids);

    let mut session = dropping();
    session.set_messages(&messages).unwrap();
    let mut fork = session.fork();
    let tokens = |session: &mut Session| {
        let mut answer = session.generate(greedy(room + 30)).unwrap();
        let ids: Vec<u32> = answer.by_ref().map(|token| token.unwrap().id).collect();
        (ids, answer.finish_reason())
    };
    assert_eq!(tokens(&mut session), (expected.clone(), Some(FinishReason::MaxTokens)));
    assert_eq!(session.tokens().len(), kept.len() + 30);
    // Beside another one, which does not notice.
    let neighbour = prompt(800, 12);
    let mut beside = super::session(&SHARED, &neighbour);
    let sequences = [(&mut fork, room + 30), (&mut beside, 60)];
    let sequences =
        sequences.map(|(session, most)| Sequence { session, options: greedy(most) }).into();
    let mut both = [Vec::new(), Vec::new()];
    generate_batch(sequences, |i, token| {
        both[i].push(token.id);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(both, [expected, alone(&neighbour, greedy(60)).ids]);
}

#[test]
fn where_there_is_no_older_turn_the_context_is_full() {
    let answer = |session: &mut Session| {
        let mut answer = session.generate(greedy(2 * CONTEXT)).unwrap();
        assert!(answer.by_ref().all(|token| token.is_ok()));
        answer.finish_reason()
    };
    let mut last = dropping();
    last.set_messages(&conversation(1)).unwrap();
    assert_eq!(answer(&mut last), Some(FinishReason::ContextFull));
    assert_eq!(last.tokens().len(), CONTEXT);
    let mut long = conversation(1);
    long[1] = Message::new("user", "long ".repeat(CONTEXT));
    assert!(matches!(last.set_messages(&long), Err(Error::ContextFull { .. })));
    // No messages, no turns.
    let mut plain = dropping();
    plain.push_tokens(&prompt(801, 200)).unwrap();
    assert_eq!(answer(&mut plain), Some(FinishReason::ContextFull));
    // Nor where they are no longer what the session begins with.
    let mut cut = dropping();
    cut.set_messages(&conversation(4)).unwrap();
    cut.truncate(20);
    assert_eq!(answer(&mut cut), Some(FinishReason::ContextFull));
}
