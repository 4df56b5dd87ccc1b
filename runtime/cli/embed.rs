//! `epiphyte embed`: texts as vectors.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::adapter::{AdapterArgs, Adapters};
use super::paths::{Files, Kind};
use super::{ModelArgs, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::classify::{Features, Pooling, Vectors};
use epiphyte::engine::{CancelToken, EmbedOptions, Engine};
use epiphyte::error::{Error, Result};
use epiphyte::tokenizer::EncodeOptions;

/// Make vectors of texts
#[derive(Args)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The texts, one a line; of a `.jsonl` file the `text` of each record; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    features: FeatureArgs,
    /// Write them to this file, as numpy's where it ends in `.npy`, else as safetensors [default:
    /// lines of JSON on standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How vectors are made.
#[derive(Args)]
pub(super) struct FeatureArgs {
    /// Which of the last hidden states
    #[arg(long, value_enum, default_value = "mean")]
    pooling: PoolingArg,
    /// Scale each to length 1
    #[arg(long)]
    normalize: bool,
    /// Leave out of longer texts what the context has no room for
    #[arg(long)]
    pub(super) truncate: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingArg {
    Mean,
    Last,
}

impl FeatureArgs {
    pub(super) fn features(&self) -> Features {
        let pooling = match self.pooling {
            PoolingArg::Mean => Pooling::Mean,
            PoolingArg::Last => Pooling::Last,
        };
        Features { pooling, normalize: self.normalize }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    texts: usize,
    width: usize,
    /// Texts that were cut to the context.
    truncated: usize,
    /// Unless they are in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Vec<&'a [f32]>>,
    adapters: Adapters,
    device: String,
    seconds: f64,
}

#[derive(Serialize)]
struct Line<'a> {
    embedding: &'a [f32],
}

pub(super) fn run(args: &EmbedArgs, gpu: GpuOptions) -> Result<()> {
    let mut files =
        Files::default().model(&args.model.file)?.reads("the texts", "--file", &args.file);
    if let Some(out) = &args.out {
        files = files.writes("--out", out, Kind::Vectors);
    }
    files.check(None)?;
    let texts = read_texts(&args.file)?;
    let engine = args.model.open(gpu)?;
    let adapters = Adapters::load(&args.adapters, &engine)?;
    let start = Instant::now();
    let making = Making {
        engine: &engine,
        adapters: &adapters,
        features: args.features.features(),
        truncate: args.features.truncate,
    };
    let (vectors, truncated) = making.vectors(texts.iter().map(String::as_str))?;
    if let Some(out) = &args.out {
        vectors.save(out, &engine.base().fingerprint)?;
    }
    let shown = args.out.is_none().then(|| vectors.rows().collect());
    let report = Report {
        texts: vectors.len(),
        width: vectors.width(),
        truncated,
        embeddings: shown,
        device: engine.device(),
        adapters,
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json {
        return output::json(&report);
    }
    for embedding in report.embeddings.iter().flatten() {
        output::json(&Line { embedding })?;
    }
    let Report { texts, width, seconds, .. } = report;
    output::note(&format!("{texts} vectors of {width}, {seconds:.1} s on {}", report.device));
    Ok(())
}

/// What makes vectors of texts.
pub(super) struct Making<'a> {
    pub(super) engine: &'a std::sync::Arc<Engine>,
    pub(super) adapters: &'a Adapters,
    pub(super) features: Features,
    pub(super) truncate: bool,
}

impl Making<'_> {
    /// The vectors of texts, and how many texts were cut.
    ///
    /// Errors: [`Error::Cancelled`]; [`Error::InvalidArgument`] for an empty text, by its number.
    pub(super) fn vectors<'t>(
        &self,
        texts: impl ExactSizeIterator<Item = &'t str>,
    ) -> Result<(Vectors, usize)> {
        let stop = interrupt::listen("stopping; again to leave at once");
        let bar = output::bar(texts.len() as u64, "{pos}/{len} texts {wide_bar} {eta} left");
        let mut vectors = Vectors::new(self.engine.base().config.hidden_size);
        let mut cut = 0;
        for (number, text) in (1..).zip(texts) {
            let made = self.vector(text, &stop.token).map_err(|error| match error {
                Error::InvalidArgument { reason, .. } => Error::InvalidArgument {
                    name: "text",
                    reason: format!("text {number}: {reason}"),
                },
                error => error,
            });
            let (vector, was_cut) = made?;
            vectors.push(&vector)?;
            cut += usize::from(was_cut);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((vectors, cut))
    }

    fn vector(&self, text: &str, cancel: &CancelToken) -> Result<(Vec<f32>, bool)> {
        let (engine, context) = (self.engine, self.engine.context());
        let mut ids = engine.base().tokenizer.encode(text, EncodeOptions::default())?;
        let is_long = ids.len() > context;
        if is_long && self.truncate {
            ids.truncate(context);
        }
        let mut session = engine.session();
        self.adapters.apply(&mut session)?;
        session.push_tokens(&ids)?;
        let options = EmbedOptions { features: self.features, cancel: cancel.clone() };
        Ok((session.embed(&options)?, is_long))
    }
}

#[derive(serde::Deserialize)]
struct Record {
    text: String,
}

/// Errors: [`Error::Io`]; [`Error::InvalidFile`] naming the line.
pub(super) fn read_texts(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        return Ok(read_records::<Record>(path)?.into_iter().map(|record| record.text).collect());
    }
    let io = |e| Error::io(path, e);
    lines(path)?.lines().collect::<std::io::Result<_>>().map_err(io)
}

/// The records of a JSONL file; blank lines count for nothing.
///
/// Errors: as [`read_texts`].
pub(super) fn read_records<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let mut records = Vec::new();
    for (number, line) in (1..).zip(lines(path)?.lines()) {
        let line = line.map_err(|e| Error::io(path, e))?;
        if line.trim().is_empty() {
            continue;
        }
        let record = serde_json::from_str(&line).map_err(|e| {
            // The error's own words may quote the record.
            let reason = format!("line {number}: not such a record, from column {} on", e.column());
            Error::InvalidFile { path: path.into(), reason }
        });
        records.push(record?);
    }
    if records.is_empty() {
        return Err(Error::InvalidFile {
            path: path.into(),
            reason: "no record; give at least one".into(),
        });
    }
    Ok(records)
}

fn lines(path: &Path) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    Ok(Box::new(BufReader::new(file)))
}
