//! What the border costs a token, with the tiny model, where it is nearly all there is: the same
//! answer through the runtime and through the border, taking turns.

use std::time::{Duration, Instant};

use pollster::block_on;

use super::{PROMPT, expected, greedy, open, session};

const TOKENS: i32 = 192;
const ROUNDS: usize = 20;

/// Microseconds a token after the first, of the fastest round.
fn fastest(rounds: Vec<Duration>) -> f64 {
    let fastest = rounds.into_iter().min().unwrap_or_default();
    fastest.as_secs_f64() * 1e6 / f64::from(TOKENS - 1)
}

#[test]
#[ignore = "measures; phones want less than 50 us in all, of which the languages need their part"]
fn a_token_costs_little_more_than_in_the_runtime() {
    let runtime = epiphyte::Engine::open(
        super::golden("tiny_llama.gguf"),
        epiphyte::EngineOptions {
            gpu: epiphyte::GpuOptions::from_env().unwrap(),
            ..Default::default()
        },
    )
    .unwrap();
    let engine = open(Default::default()).unwrap();
    let direct = || {
        let mut session = runtime.session();
        session.push_text(PROMPT).unwrap();
        let options = epiphyte::GenerateOptions::try_from(greedy(TOKENS)).unwrap();
        let mut answer = session.generate(options).unwrap();
        answer.next().unwrap().unwrap();
        let start = Instant::now();
        assert_eq!(answer.map(Result::unwrap).count(), TOKENS as usize - 1);
        start.elapsed()
    };
    let border = || {
        let answer = session(&engine).generate(greedy(TOKENS)).unwrap();
        assert_eq!(block_on(answer.next()).unwrap().unwrap(), expected(1)[0]);
        let start = Instant::now();
        let mut tokens = 1;
        while block_on(answer.next()).unwrap().is_some() {
            tokens += 1;
        }
        assert_eq!(tokens, TOKENS);
        start.elapsed()
    };
    direct();
    border();
    let (direct, border): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| (direct(), border())).unzip();
    let (direct, border) = (fastest(direct), fastest(border));
    println!(
        "{direct:.1} us a token in the runtime, {border:.1} through the border: {:.1} more",
        border - direct
    );
}
