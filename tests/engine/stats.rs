//! What an answer took.

use epiphyte::{AnswerStats, Batch, EngineOptions, FinishReason, Sequence};

use super::{PAGE, greedy, open, prompt, session};

#[test]
fn an_answer_tells_what_it_took() {
    let engine = open(EngineOptions { skip_self_test: true, ..EngineOptions::default() });
    let ids = prompt(600, 2 * PAGE + 5);
    for cached in [0, 2 * PAGE] {
        let mut session = session(&engine, &ids);
        let mut generation = session.generate(greedy(6)).unwrap();
        assert_eq!(generation.stats(), AnswerStats::default(), "nothing has begun");
        generation.next().unwrap().unwrap();
        let first = generation.stats();
        assert_eq!(
            (first.prompt_tokens, first.cached_tokens, first.generated_tokens),
            (ids.len(), cached, 1)
        );
        assert_eq!((first.finish_reason, first.decode_tps()), (None, None));
        assert!(first.first_token_seconds.unwrap() > 0.0 && first.prompt_tps().unwrap() > 0.0);
        assert_eq!(generation.by_ref().count(), 5);
        let whole = generation.stats();
        assert_eq!(whole.finish_reason, Some(FinishReason::MaxTokens));
        assert_eq!(whole.first_token_seconds, first.first_token_seconds);
        let tps = whole.decode_tps().unwrap();
        assert!((tps * whole.decode_seconds - 5.0).abs() < 1e-6 && whole.generated_tokens == 6);
        drop(generation);
        let options = greedy(1);
        let batch = Batch::new(vec![Sequence { session: &mut session, options }]).unwrap();
        assert_eq!((batch.stats(0), batch.stats(1)), (Some(AnswerStats::default()), None));
    }
}
