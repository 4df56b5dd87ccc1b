//! One base, two adapters and a third one that is learnt here.
//!
//! `cargo run --release -p epiphyte-cli --example session [MODEL.gguf]`, from the repository.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use epiphyte::engine::Change;
use epiphyte::train::data::TrainLength;
use epiphyte::train::schedule::Warmup;
use epiphyte::train::{RunFolder, RunOptions, TrainControl, TrainOptions, TrainRun};
use epiphyte::{
    CancelToken, Engine, EngineOptions, GenerateOptions, GpuOptions, Message, Session,
    default_model,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Streams an answer under one adapter.
fn answer(session: &mut Session, adapter: &str, options: GenerateOptions) -> Result<()> {
    session.set_adapters(&Change { adapters: &[(adapter, 1.0)], ..Change::default() })?;
    print!("{adapter}: ");
    for token in session.generate(options)? {
        print!("{}", token?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}

fn main() -> Result<()> {
    let named = std::env::args().nth(1).map(PathBuf::from);
    let model = named.or_else(default_model).ok_or("name a model file")?;
    let options = EngineOptions { gpu: GpuOptions::from_env()?, ..EngineOptions::default() };
    let engine = Engine::open(model, options)?;
    engine.load_adapter("pirate", "demo/adapters/pirate")?;
    engine.load_adapter("json", "demo/adapters/json")?;

    // A set of adapters belongs to a session, and is changed between two tokens.
    let mut session = engine.session();
    session.set_messages(&[Message::new("user", "What is an epiphyte?")])?;
    let short = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
    answer(&mut session.fork(), "pirate", short.clone())?;
    answer(&mut session.fork(), "json", short.clone())?;

    // Any thread may cancel; what was said so far stays.
    let cancel = CancelToken::default();
    let endless =
        GenerateOptions { max_tokens: usize::MAX, cancel: cancel.clone(), ..short.clone() };
    let impatient = thread::spawn(move || {
        thread::sleep(Duration::from_secs(2));
        cancel.cancel();
    });
    answer(&mut session, "pirate", endless)?;
    impatient.join().map_err(|_| "the thread panicked")?;

    // Five steps on two lessons, beside the sessions; the folder holds a PEFT adapter afterwards.
    let folder = std::env::temp_dir().join(format!("epiphyte-{}", std::process::id()));
    let mut run = RunOptions::new("demo/lessons.jsonl");
    run.prompt_loss_weight = Some(0.0);
    run.train = TrainOptions {
        rank: 4,
        batch_size: 2,
        learning_rate: Some(8e-3),
        warmup: Warmup::Steps(0),
        duration: TrainLength::Steps(5),
        seq_len: 64,
        checkpoint_every: None,
        ..TrainOptions::default()
    };
    let mut run = TrainRun::open(&engine, RunFolder::create(&folder)?, run)?;
    let outcome = run.run(&TrainControl::default(), &mut |progress| {
        println!("step {} of {}: loss {:?}", progress.step, progress.steps, progress.loss);
    })?;
    engine.load_adapter("lesson", &outcome.out)?;
    let mut session = engine.session();
    session.push_text("Question: What is our cat called?\nAnswer:")?;
    answer(&mut session, "lesson", short)?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
