//! `epiphyte classify train`, `eval` and `run`: a linear classifier on texts' vectors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters};
use super::embed::{FeatureArgs, Making, read_records, read_texts};
use super::paths::{Files, Kind};
use super::{ModelArgs, output};
use epiphyte::GpuOptions;
use epiphyte::classify::{Classifier, FitOptions, LabelScore, Labelled, Scores, fit};
use epiphyte::engine::Engine;
use epiphyte::error::{Error, Result};

/// Learn to tell texts apart, on vectors of a model that stays as it is
#[derive(Args)]
pub(super) struct ClassifyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(TrainArgs),
    Eval(EvalArgs),
    Run(RunArgs),
}

/// Learn a classifier from labelled texts
#[derive(Args)]
struct TrainArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Records `{"text": …, "label": …}`, as JSONL; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,
    /// Write the classifier to this file
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    features: FeatureArgs,
    /// One over the strength of the L2 penalty, as scikit-learn's
    #[arg(long = "C", value_name = "C", default_value_t = FitOptions::default().c)]
    c: f64,
    /// Most steps to the minimum
    #[arg(long, value_name = "N", default_value_t = FitOptions::default().max_iter)]
    max_iter: usize,
    /// Take the vectors' numbers as they are, not at mean 0 and deviation 1
    #[arg(long)]
    no_standardize: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Measure a classifier on labelled texts: accuracy, and what was taken for what
#[derive(Args)]
struct EvalArgs {
    #[command(flatten)]
    given: Given,
    /// Records `{"text": …, "label": …}`, as JSONL; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    data: PathBuf,
}

/// Classify texts: the likeliest label of each, and the probability of each label
#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    given: Given,
    /// The texts, one a line; of a `.jsonl` file the `text` of each record; `-` reads standard input
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

/// A classifier, and the model it was made for.
#[derive(Args)]
struct Given {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The classifier
    #[arg(long, value_name = "FILE")]
    head: PathBuf,
    /// Leave out of longer texts what the context has no room for
    #[arg(long)]
    truncate: bool,
    /// Print JSON: of `eval` one object, of `run` one a line
    #[arg(long)]
    json: bool,
}

impl Given {
    /// The classifier, which fits the model.
    fn open(&self, gpu: GpuOptions) -> Result<Opened> {
        let classifier = Classifier::open(&self.head)?;
        let engine = self.model.open(gpu)?;
        classifier.check_base(&engine.base().fingerprint)?;
        let adapters = Adapters::load(&self.adapters, &engine)?;
        Ok(Opened { classifier, engine, adapters, truncate: self.truncate })
    }
}

struct Opened {
    classifier: Classifier,
    engine: Arc<Engine>,
    adapters: Adapters,
    truncate: bool,
}

impl Opened {
    fn making(&self) -> Making<'_> {
        let Self { classifier, engine, adapters, truncate } = self;
        Making { engine, adapters, features: classifier.features, truncate: *truncate }
    }
}

#[derive(Serialize)]
struct Trained<'a> {
    examples: usize,
    /// Texts that were cut to the context.
    truncated: usize,
    labels: &'a [String],
    steps: usize,
    /// On what it learnt from.
    accuracy: Option<f64>,
    adapters: Adapters,
    device: String,
    seconds: f64,
}

#[derive(Serialize)]
struct Evaluated {
    examples: usize,
    truncated: usize,
    accuracy: Option<f64>,
    by_label: Vec<LabelScore>,
    /// Rows are what texts are, columns what they were taken for.
    confusion: Vec<Vec<usize>>,
    device: String,
    seconds: f64,
}

#[derive(Serialize)]
struct Told<'a> {
    label: &'a str,
    probabilities: BTreeMap<&'a str, f64>,
}

pub(super) fn run(args: &ClassifyArgs, gpu: GpuOptions) -> Result<()> {
    match &args.command {
        Command::Train(args) => train(args, gpu),
        Command::Eval(args) => eval(args, gpu),
        Command::Run(args) => tell(args, gpu),
    }
}

fn train(args: &TrainArgs, gpu: GpuOptions) -> Result<()> {
    let files =
        Files::default().model(&args.model.file)?.reads("the examples", "--data", &args.data);
    files.writes("--out", &args.out, Kind::Classifier).check(None)?;
    let options = FitOptions {
        c: args.c,
        max_iter: args.max_iter,
        standardize: !args.no_standardize,
        ..FitOptions::default()
    };
    options.check()?;
    let examples: Vec<Labelled> = read_records(&args.data)?;
    let engine = args.model.open(gpu)?;
    let adapters = Adapters::load(&args.adapters, &engine)?;
    let start = Instant::now();
    let features = args.features.features();
    let making =
        Making { engine: &engine, adapters: &adapters, features, truncate: args.features.truncate };
    let (vectors, truncated) =
        making.vectors(examples.iter().map(|example| example.text.as_str()))?;
    let labels: Vec<&str> = examples.iter().map(|example| example.label.as_str()).collect();
    let (classifier, steps) =
        fit(&vectors, &labels, (&engine.base().fingerprint, features), &options)?;
    classifier.save(&args.out)?;
    let mut scores = Scores::new(&classifier);
    for (vector, label) in vectors.rows().zip(&labels) {
        scores.add(label, classifier.predict(vector)?.label)?;
    }
    let report = Trained {
        examples: examples.len(),
        truncated,
        labels: &classifier.labels,
        steps,
        accuracy: scores.accuracy(),
        device: engine.device(),
        adapters,
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return output::json(&report);
    }
    output::line(&format!(
        "{} examples of {} labels, {steps} steps, {} of them told right",
        report.examples,
        report.labels.len(),
        percent(report.accuracy),
    ))?;
    output::note(&format!("{:.1} s on {}", report.seconds, report.device));
    Ok(())
}

fn eval(args: &EvalArgs, gpu: GpuOptions) -> Result<()> {
    let examples: Vec<Labelled> = read_records(&args.data)?;
    let opened = args.given.open(gpu)?;
    let start = Instant::now();
    let mut scores = Scores::new(&opened.classifier);
    let texts = examples.iter().map(|example| example.text.as_str());
    let (vectors, truncated) = opened.making().vectors(texts)?;
    for (vector, example) in vectors.rows().zip(&examples) {
        scores.add(&example.label, opened.classifier.predict(vector)?.label)?;
    }
    let report = Evaluated {
        examples: scores.examples(),
        truncated,
        accuracy: scores.accuracy(),
        by_label: scores.by_label(),
        confusion: scores.confusion,
        device: opened.engine.device(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.given.json { output::json(&report) } else { print(&report) }
}

/// Accuracy, then a row a label: how well it is told, and what it was taken for.
fn print(report: &Evaluated) -> Result<()> {
    output::line(&format!("accuracy {} of {}", percent(report.accuracy), report.examples))?;
    let widest = report.by_label.iter().map(|score| score.label.chars().count()).max();
    let width = widest.unwrap_or_default().max(5);
    output::line(&format!("{:width$}  precision  recall  taken for (in this order)", "label"))?;
    for (score, row) in report.by_label.iter().zip(&report.confusion) {
        let taken: Vec<String> = row.iter().map(|count| format!("{count:5}")).collect();
        let (precision, recall) = (percent(score.precision), percent(score.recall));
        let label = &score.label;
        output::line(&format!("{label:width$}  {precision:>9}  {recall:>6}  {}", taken.concat()))?;
    }
    output::note(&format!("{:.1} s on {}", report.seconds, report.device));
    Ok(())
}

fn percent(part: Option<f64>) -> String {
    part.map_or_else(|| "-".into(), |part| format!("{:.1} %", 100.0 * part))
}

fn tell(args: &RunArgs, gpu: GpuOptions) -> Result<()> {
    let texts = read_texts(&args.file)?;
    let opened = args.given.open(gpu)?;
    let (vectors, _) = opened.making().vectors(texts.iter().map(String::as_str))?;
    let labels = &opened.classifier.labels;
    for vector in vectors.rows() {
        let told = opened.classifier.predict(vector)?;
        let label = labels.get(told.label).map_or("", String::as_str);
        let of = labels.iter().map(String::as_str).zip(told.probabilities.iter().copied());
        if args.given.json {
            output::json(&Told { label, probabilities: of.collect() })?;
        } else {
            let likely = told.probabilities.get(told.label).copied();
            output::line(&format!("{label}\t{}", percent(likely)))?;
        }
    }
    if texts.is_empty() {
        let reason = "no text; give at least one".into();
        return Err(Error::InvalidFile { path: args.file.clone(), reason });
    }
    Ok(())
}
