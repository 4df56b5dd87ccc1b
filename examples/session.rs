//! One base, two adapters, a third one learnt here, from the repository:
//! `cargo run --release -p epiphyte-cli --example session [MODEL.gguf]`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::io::{self, Write};
use std::{env, fs, path::PathBuf, process, thread, time::Duration};

use epiphyte::train::{RunFolder, RunOptions, TrainControl, TrainRun, data::TrainLength};
use epiphyte::{
    Engine, EngineOptions, GenerateOptions, GpuOptions, Message, Session, default_model,
    engine::Change,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Streams an answer under one adapter.
fn answer(session: &mut Session, adapter: &str, options: GenerateOptions) -> Result<()> {
    session.set_adapters(&Change { adapters: &[(adapter, 1.0)], ..Change::default() })?;
    print!("{adapter}: ");
    for token in session.generate(options)? {
        print!("{}", token?.text);
        io::stdout().flush()?;
    }
    println!();
    Ok(())
}

fn main() -> Result<()> {
    let named = env::args().nth(1).map(PathBuf::from);
    let model = named.or_else(default_model).ok_or("name a model file")?;
    let options = EngineOptions { gpu: GpuOptions::from_env()?, ..EngineOptions::default() };
    let engine = Engine::open(model, options)?;
    engine.load_adapter("pirate", "demo/adapters/pirate")?;
    engine.load_adapter("json", "demo/adapters/json")?;
    let short = || GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };

    let mut session = engine.session();
    session.set_messages(&[Message::new("user", "What is an epiphyte?")])?;
    answer(&mut session.fork(), "pirate", short())?;
    answer(&mut session.fork(), "json", short())?;

    // Any thread may cancel; what was said so far stays.
    let endless = GenerateOptions { max_tokens: usize::MAX, ..GenerateOptions::default() };
    let cancel = endless.cancel.clone();
    thread::spawn(move || (thread::sleep(Duration::from_secs(2)), cancel.cancel()));
    answer(&mut session, "pirate", endless)?;

    // Five steps on two lessons; the folder then holds a PEFT adapter.
    let folder = env::temp_dir().join(format!("epiphyte-{}", process::id()));
    let mut run = RunOptions::new("demo/lessons.jsonl");
    (run.train.rank, run.train.batch_size, run.train.seq_len) = (4, 2, 64);
    (run.train.learning_rate, run.train.duration) = (Some(8e-3), TrainLength::Steps(5));
    let mut run = TrainRun::open(&engine, RunFolder::create(&folder)?, run)?;
    run.run(&TrainControl::default(), &mut |at| println!("step {}: {:?}", at.step, at.loss))?;
    engine.load_adapter("lesson", &folder)?;
    let mut session = engine.session();
    session.push_text("Question: What is our cat called?\nAnswer:")?;
    answer(&mut session, "lesson", short())?;
    Ok(fs::remove_dir_all(folder)?)
}
