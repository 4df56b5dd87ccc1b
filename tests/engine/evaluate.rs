//! Loss and exact answers from the library.

use epiphyte::engine::{Change, Session};
use epiphyte::evaluate::{
    Canary, EvaluateOptions, EvaluateProgress, Evaluation, Examples, check_canary, evaluate,
};
use epiphyte::train::data::{DataOptions, Encoder, Record};
use epiphyte::{CancelToken, Error};

use super::{SHARED, greedy, prompt, session};

fn pair(prompt: &str, completion: &str) -> Record {
    Record::Pair { prompt: prompt.into(), completion: completion.into() }
}

fn examples(records: Vec<Record>) -> Examples {
    let base = SHARED.base();
    let options =
        DataOptions { seq_len: SHARED.context(), truncate: false, ..DataOptions::default() };
    let encoder =
        Encoder::new(&base.tokenizer, &base.chat_template, SHARED.context(), options).unwrap();
    Examples::of(records, &encoder).unwrap()
}

/// What the model says after a text.
fn said(text: &str, max_tokens: usize) -> String {
    let mut session = SHARED.session();
    session.push_text(text).unwrap();
    super::generate(
        &mut session,
        super::GenerateOptions { ignore_eos: false, ..greedy(max_tokens) },
    )
    .text
}

fn measured(examples: &Examples, options: &EvaluateOptions) -> (Evaluation, Vec<EvaluateProgress>) {
    let mut heard = Vec::new();
    let evaluation =
        evaluate(&SHARED.session(), examples, options, &mut |progress| heard.push(progress))
            .unwrap();
    (evaluation, heard)
}

#[test]
fn answers_are_compared_and_the_loss_is_the_mean_by_weight() {
    let prompts: Vec<String> = (0..10).map(|i| format!("the sea {i}")).collect();
    let wanted = |i: usize| {
        if i == 4 { "no".to_string() } else { format!(" {}\n", said(&prompts[i], 6).trim()) }
    };
    let mut records: Vec<Record> = (0..10).map(|i| pair(&prompts[i], &wanted(i))).collect();
    // Asks nothing, and has a loss all the same.
    records.push(Record::Text { text: "the sea and the land".into() });
    let examples = examples(records);
    let (evaluation, heard) =
        measured(&examples, &EvaluateOptions { max_tokens: Some(6), ..Default::default() });
    assert_eq!((evaluation.answers.len(), evaluation.exact()), (10, 9));
    assert_eq!(evaluation.exact_match(), Some(0.9));
    let wrong: Vec<_> =
        evaluation.wrong().map(|answer| (answer.line, answer.wanted.as_str())).collect();
    assert_eq!(wrong, [(5, "no")]);
    assert_eq!(evaluation.answers[4].got, said(&prompts[4], 6));
    assert_eq!((heard[0].done, heard[heard.len() - 1].done, heard[0].total), (0, 21, 21));

    let (mut sum, mut weights) = (0.0, 0.0);
    for example in &examples.data.examples {
        let mut session = session(&SHARED, &example.ids);
        session
            .logits(0, |i, logits| {
                let Some(weight) = example.weights.get(i + 1).map(|&weight| f64::from(weight))
                else {
                    return;
                };
                let all: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
                sum += weight * (all.ln() - f64::from(logits[example.ids[i + 1] as usize]));
                weights += weight;
            })
            .unwrap();
    }
    let loss = evaluation.loss.unwrap();
    assert!((loss - sum / weights).abs() < 1e-4 * loss, "{loss} is not {}", sum / weights);
}

#[test]
fn one_that_is_stopped_says_so() {
    let cancel = CancelToken::default();
    cancel.cancel();
    let (evaluation, _) =
        measured(&examples(vec![pair("a", "b")]), &EvaluateOptions { cancel, max_tokens: None });
    let mut nothing = Evaluation::default();
    nothing.cancelled = true;
    assert_eq!(evaluation, nothing);
    assert_eq!(evaluation.exact_match(), None);
}

#[test]
fn a_session_that_holds_something_is_no_template() {
    let refused = evaluate(
        &session(&SHARED, &prompt(1, 3)),
        &Examples::default(),
        &EvaluateOptions::default(),
        &mut |_| {},
    );
    assert!(matches!(refused, Err(Error::InvalidArgument { name: "template", .. })));
}

#[test]
fn a_canary_tells_broken_adapters_and_says_no_word_of_what_was_asked() {
    let asked = examples(vec![pair("secret", " answer")]);
    let never = CancelToken::default();
    let loss = measured(&asked, &EvaluateOptions::default()).0.loss.unwrap();
    let check = |session: &Session, canary| check_canary(session, &asked, &canary, &never);
    let plain = SHARED.session();
    assert_eq!(check(&plain, Canary::default()).unwrap().loss, Some(loss));
    let bounded = |max_loss| Canary { max_loss: Some(max_loss), exact: false };
    check(&plain, bounded(loss + 0.1)).unwrap();
    let refused = |session: &Session, canary: Canary, says: &str| {
        let error = check(session, canary).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidAdapter { what, .. } if what == "canary"),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(says) && !text.contains("secret") && !text.contains("answer\""),
            "{text}"
        );
    };
    refused(&plain, bounded(loss - 0.1), "is allowed");
    refused(&plain, Canary { max_loss: None, exact: true }, "1 of 1 answers are wrong");

    // Numbers that are finite one by one, and have no finite product.
    let shape = SHARED.base().adapter_shape();
    let options = epiphyte::train::TrainOptions { rank: 4, ..Default::default() };
    let mut broken =
        epiphyte::train::fresh_adapter(&options, &shape, &SHARED.base().fingerprint).unwrap();
    for module in &mut broken.modules {
        module.a.iter_mut().chain(&mut module.b).for_each(|value| *value = 6e4);
    }
    SHARED.add_adapter("broken", &broken).unwrap();
    let mut session = SHARED.session();
    let change = Change { adapters: &[("broken", 1.0)], ..Change::default() };
    session.set_adapters(&change).unwrap();
    refused(&session, Canary::default(), "no numbers");
    drop(session);
    SHARED.unload_adapter("broken").unwrap();
    let nothing = check_canary(&plain, &Examples::default(), &Canary::default(), &never);
    assert!(matches!(nothing, Err(Error::InvalidArgument { name: "canary", .. })));
    let texts = examples(vec![Record::Text { text: "the sea and the land".into() }]);
    let exact = Canary { max_loss: None, exact: true };
    let unasked = check_canary(&plain, &texts, &exact, &never);
    assert!(matches!(unasked, Err(Error::InvalidArgument { name: "canary", .. })));
    let no_number = check(&plain, bounded(f64::NAN));
    assert!(matches!(no_number, Err(Error::InvalidArgument { name: "canary", .. })));
}
