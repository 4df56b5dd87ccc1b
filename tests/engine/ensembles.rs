//! Adapters that answer together, and merges that are found by their loss.

use std::sync::{Arc, LazyLock};

use epiphyte::engine::KvPolicy;
use epiphyte::engine::batch::next_logits;
use epiphyte::evaluate::{
    Combine, EvaluateOptions, Evaluation, Examples, Search, Trial, evaluate, evaluate_ensemble,
    tune,
};
use epiphyte::merge::{Method, Parent, Recipe};
use epiphyte::train::data::{DataOptions, Encoder, Record};
use epiphyte::{CancelToken, Engine, EngineOptions, Error, Session};

use super::adapters::{Set, adapted, numbered, set, under};
use super::prompt;

static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(|| adapted(EngineOptions::default()));

const TOKENS: usize = 6;

fn options() -> EvaluateOptions {
    EvaluateOptions { max_tokens: Some(TOKENS), ..EvaluateOptions::default() }
}

fn member(adapters: Set<'_>) -> Session {
    let mut session = ENGINE.session();
    set(&mut session, adapters, KvPolicy::Recompute);
    session
}

/// Questions with the answers that `wanted` gives.
fn examples(mut wanted: impl FnMut(&str) -> String) -> Examples {
    let base = ENGINE.base();
    let options =
        DataOptions { seq_len: ENGINE.context(), truncate: false, ..DataOptions::default() };
    let encoder =
        Encoder::new(&base.tokenizer, &base.chat_template, ENGINE.context(), options).unwrap();
    let pair = |i: usize| {
        let prompt = format!("the sea {i}");
        let completion = wanted(&prompt);
        Record::Pair { prompt, completion }
    };
    let records: Vec<Record> = (0..6).map(pair).collect();
    Examples::of(records, &encoder).unwrap()
}

fn together(members: &[Session], combine: Combine, examples: &Examples) -> Evaluation {
    evaluate_ensemble(members, combine, examples, &options(), &mut |_| {}).unwrap()
}

fn said(evaluation: &Evaluation) -> Vec<&str> {
    evaluation.answers.iter().map(|answer| answer.got.as_str()).collect()
}

#[test]
fn next_logits_are_those_of_each_session_alone() {
    let sets: [Set<'_>; 3] = [&[("a", 1.0)], &[], &[("b", -0.5)]];
    let ids = |i: usize| prompt(40 + i as u64, 3 + 20 * i);
    let mut sessions: Vec<Session> =
        sets.iter().enumerate().map(|(i, adapters)| under(&ENGINE, adapters, &ids(i))).collect();
    for step in 0..2 {
        let found = next_logits(&mut sessions).unwrap();
        for (i, session) in sessions.iter_mut().enumerate() {
            let mut alone = under(&ENGINE, sets[i], session.tokens());
            let mut wanted = Vec::new();
            alone.logits(session.tokens().len() - 1, |_, logits| wanted = logits.to_vec()).unwrap();
            let largest = wanted.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
            for (a, b) in found[i].iter().zip(&wanted) {
                assert!(
                    (a - b).abs() <= 1e-4 * largest,
                    "step {step}, session {i}: {a} is not {b}"
                );
            }
            session.push_tokens(&[7 + i as u32]).unwrap();
        }
    }
}

#[test]
fn an_ensemble_of_one_is_its_member() {
    let member = member(&[("a", 1.0)]);
    let examples = examples(|_| " land".into());
    let alone = evaluate(&member, &examples, &options(), &mut |_| {}).unwrap();
    let members = [member];
    let voted = together(&members, Combine::Majority, &examples);
    assert_eq!((said(&voted), voted.loss), (said(&alone), None));
    let joined = together(&members, Combine::Logits, &examples);
    assert_eq!(said(&joined), said(&alone));
    let (a, b) = (joined.loss.unwrap(), alone.loss.unwrap());
    assert!((a - b).abs() < 1e-4 * b, "{a} is not {b}");
}

#[test]
fn the_majority_wins_and_logits_are_averaged() {
    let examples = examples(|_| " land".into());
    let of = |adapters: Set<'_>| {
        let evaluation = evaluate(&member(adapters), &examples, &options(), &mut |_| {}).unwrap();
        said(&evaluation).into_iter().map(String::from).collect::<Vec<_>>()
    };
    let (a, b, c): (Set<'_>, Set<'_>, Set<'_>) = (&[("a", 1.0)], &[("b", 1.0)], &[("c", 1.0)]);
    assert!(of(a) != of(b) && of(a) != of(c));
    let vote = |sets: &[Set<'_>]| {
        let members: Vec<Session> = sets.iter().map(|adapters| member(adapters)).collect();
        let evaluation = together(&members, Combine::Majority, &examples);
        said(&evaluation).into_iter().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(vote(&[b, a, a]), of(a));
    assert_eq!(vote(&[c, b]), of(c), "of equally many the first");

    // Token by token, on the host.
    let members = [member(a), member(b)];
    let joined = together(&members, Combine::Logits, &examples);
    let base = ENGINE.base();
    for (i, answer) in joined.answers.iter().enumerate() {
        let ask = |adapters: Set<'_>| {
            let mut session = member(adapters);
            session.push_text(&format!("the sea {i}")).unwrap();
            session
        };
        let mut sessions = [ask(a), ask(b)];
        let start = sessions[0].tokens().len();
        for _ in 0..TOKENS {
            let mut last = vec![0.0_f64; base.config.vocab_size];
            for (adapters, session) in [a, b].into_iter().zip(&sessions) {
                let ids = session.tokens();
                under(&ENGINE, adapters, ids)
                    .logits(ids.len() - 1, |_, logits| {
                        last.iter_mut().zip(logits).for_each(|(sum, &l)| *sum += f64::from(l));
                    })
                    .unwrap();
            }
            let best = (0..last.len()).max_by(|&x, &y| last[x].total_cmp(&last[y])).unwrap() as u32;
            if base.tokenizer.is_end_of_generation(best) {
                break;
            }
            sessions.iter_mut().for_each(|session| session.push_tokens(&[best]).unwrap());
        }
        let ids = sessions[0].tokens()[start..].to_vec();
        let options = epiphyte::tokenizer::DecodeOptions {
            continuation: true,
            ..epiphyte::tokenizer::DecodeOptions::default()
        };
        assert_eq!(answer.got, base.tokenizer.decode_with(&ids, options), "question {i}");
    }
    assert!(joined.loss.unwrap().is_finite());
    let nobody = evaluate_ensemble(&[], Combine::Logits, &examples, &options(), &mut |_| {});
    assert!(matches!(nobody, Err(Error::InvalidArgument { name: "members", .. })));
}

fn recipe(method: &str, options: serde_json::Value) -> Recipe {
    Method::from_options(method, options.as_object().unwrap()).unwrap().into()
}

#[test]
fn the_best_merge_is_found_by_its_loss() {
    // What `a` says alone: `b` can only disturb.
    let engine = &*ENGINE;
    let a: Set<'_> = &[("a", 1.0)];
    let examples = examples(|prompt| {
        let mut session = member(a);
        session.push_text(prompt).unwrap();
        super::generate(&mut session, super::greedy(8)).text
    });
    let (first, second) = (numbered(0), numbered(1));
    let parent = |id, adapter, weight| Parent { id, adapter, weight, density: None };
    let parents = [parent("a", &first, 0.5), parent("b", &second, 0.5)];
    let recipes = [recipe("linear", serde_json::json!({})), recipe("soup", serde_json::json!({}))];
    let search = Search {
        recipes: &recipes,
        weights: &[0.0, 0.5, 1.0],
        rounds: 3,
        cancel: CancelToken::default(),
    };
    let mut heard = Vec::new();
    let tuned = tune(engine, &parents, &search, &examples, &mut |p| heard.push(p)).unwrap();
    let Trial { method, weights, loss, .. } = &tuned.trials[tuned.best];
    assert_eq!((*method, weights.as_slice()), ("linear", &[1.0, 0.0][..]));
    assert!(tuned.trials.iter().all(|t| t.loss.is_none_or(|other| other >= loss.unwrap())));
    assert_eq!(tuned.trials[0].weights, [0.5, 0.5], "first as it was given");
    // A soup takes no weights but 1: that it has none is no reason to end.
    let soups: Vec<_> = tuned.trials.iter().filter(|t| t.method == "soup").collect();
    assert!(
        !soups.is_empty() && soups.iter().all(|t| (t.loss.is_some()) == (t.weights == [1.0; 2]))
    );
    let (last, most) = (heard.last().unwrap(), 2 * (1 + 3 * 2 * 3));
    assert_eq!((last.done, last.most, last.best), (tuned.trials.len(), most, *loss));
    assert!(last.done < most, "no merge is tried twice");
    assert!(
        engine.adapters().iter().all(|state| super::adapters::IDS.contains(&state.id.as_str()))
    );

    // What it gives is what it measured.
    engine.add_adapter("tuned", &tuned.merged.adapter).unwrap();
    let measured =
        evaluate(&member(&[("tuned", 1.0)]), &examples, &options(), &mut |_| {}).unwrap();
    engine.unload_adapter("tuned").unwrap();
    assert_eq!(measured.loss, *loss);
}

#[test]
fn a_search_that_can_not_be_made_says_why() {
    let engine = &*ENGINE;
    let examples = examples(|_| " land".into());
    let (a, b) = (numbered(0), numbered(1));
    let parent = |id, adapter| Parent { id, adapter, weight: 0.5, density: None };
    let parents = [parent("a", &a), parent("b", &b)];
    let soup = [recipe("soup", serde_json::json!({}))];
    let cancel = CancelToken::default();
    let search = Search { recipes: &soup, weights: &[0.5], rounds: 1, cancel: cancel.clone() };
    let refused =
        |search: &Search<'_>| tune(engine, &parents, search, &examples, &mut |_| {}).unwrap_err();
    assert!(matches!(refused(&search), Error::InvalidArgument { name: "weights", .. }));
    let long = Search { rounds: usize::MAX, weights: &[0.25, 0.5], ..search.clone() };
    assert!(matches!(refused(&long), Error::InvalidArgument { name: "weights", .. }));
    let none = Search { recipes: &[], ..search.clone() };
    assert!(matches!(refused(&none), Error::InvalidArgument { name: "tune", .. }));
    cancel.cancel();
    assert!(matches!(refused(&search), Error::Cancelled));
}
