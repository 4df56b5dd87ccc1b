//! `merge --tune`: which weights, and which method, by the loss on examples.

use std::path::PathBuf;

use clap::Args;
use plotters::prelude::*;
use serde::Serialize;

use crate::eval::{ExampleFile, PROMPT_LOSS_WEIGHT};
use crate::train::svg::padded;
use crate::{ModelArgs, ModelFile, interrupt, output};
use epiphyte::GpuOptions;
use epiphyte::error::{Error, Result};
use epiphyte::evaluate::{Search, Trial, Tuned, tune};
use epiphyte::merge::{Merged, Parent, Recipe};

const SIZE: (u32, u32) = (900, 480);
/// Rows of the table.
const SHOWN: usize = 10;

#[derive(Args)]
pub(super) struct SearchArgs {
    /// Try weights and methods on these examples, which no adapter was trained on, and keep the
    /// best by loss (JSONL as `eval` takes it)
    #[arg(long, value_name = "FILE.jsonl")]
    pub(super) tune: Option<PathBuf>,
    /// Weights that each adapter gets, beside its own
    #[arg(long, value_name = "W,W,...", requires = "tune", value_delimiter = ',',
        allow_negative_numbers = true, default_values_t = [0.0, 0.25, 0.5, 0.75, 1.0])]
    grid: Vec<f64>,
    /// Times that each adapter's weight is tried, at most
    #[arg(long, value_name = "N", requires = "tune", default_value_t = 3)]
    rounds: usize,
}

/// What was tried, and what was found.
#[derive(Serialize)]
pub(super) struct Found {
    loss: Option<f64>,
    /// With the weights that were given, of the same method.
    loss_before: Option<f64>,
    /// Among the trials.
    best: usize,
    trials: Vec<Trial>,
}

impl SearchArgs {
    /// Before a model is loaded in vain.
    pub(super) fn check(&self, recipes: &[Recipe]) -> Result<()> {
        let invalid =
            |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
        match &self.tune {
            None if recipes.len() > 1 => {
                invalid("method", "several are compared with `--tune`; give one")
            }
            Some(_) if self.grid.iter().any(|weight| !weight.is_finite()) => {
                invalid("grid", "each must be a finite number")
            }
            _ => Ok(()),
        }
    }

    /// The best merge; `None` where nothing is to be tried.
    pub(super) fn run(
        &self,
        model: &ModelFile,
        gpu: GpuOptions,
        parents: &[Parent<'_>],
        recipes: &[Recipe],
    ) -> Result<Option<(Merged, Found)>> {
        let Some(path) = &self.tune else { return Ok(None) };
        let engine = ModelArgs { file: model.clone(), context: None }.open(gpu)?;
        let (skip_bad, prompt_loss_weight) = (false, PROMPT_LOSS_WEIGHT);
        let examples = ExampleFile { path, skip_bad, prompt_loss_weight }.read(&engine)?;
        let stop = interrupt::listen("stopping; again to leave at once");
        let cancel = stop.token.clone();
        let search = Search { recipes, weights: &self.grid, rounds: self.rounds, cancel };
        let bar = output::bar(0, "tried {pos} merges of {len} at most {wide_bar} {msg}");
        let tuned = tune(&engine, parents, &search, &examples, &mut |progress| {
            bar.set_length(progress.most as u64);
            bar.set_position(progress.done as u64);
            if let Some(loss) = progress.best {
                bar.set_message(format!("loss {loss:.4}"));
            }
        });
        bar.finish_and_clear();
        let Tuned { merged, best, trials, .. } = tuned?;
        let recipe = trials[best].recipe;
        let before = trials.iter().find(|trial| trial.recipe == recipe);
        let (loss, loss_before) = (trials[best].loss, before.and_then(|trial| trial.loss));
        Ok(Some((merged, Found { loss, loss_before, best, trials })))
    }
}

impl Found {
    /// The best.
    pub(super) fn weights(&self) -> &[f64] {
        &self.trials[self.best].weights
    }

    /// The best of what was tried.
    pub(super) fn print(&self) -> Result<()> {
        let mut trials: Vec<&Trial> = self.trials.iter().collect();
        trials.sort_by(|a, b| key(a).total_cmp(&key(b)));
        output::line("    loss   method            weights")?;
        for Trial { method, weights, loss, .. } in trials.iter().take(SHOWN) {
            let loss = loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}"));
            let weights: Vec<_> = weights.iter().map(f64::to_string).collect();
            output::line(&format!("{loss:>8}   {method:<16}  {}", weights.join(", ")))?;
        }
        let more = trials.len().saturating_sub(SHOWN);
        if more > 0 {
            output::line(&format!("and {more} more"))?;
        }
        output::line("")
    }

    /// The loss by each weight while the others are the best ones, a line for each method and
    /// parent, as an SVG document.
    pub(super) fn draw(&self, parents: &[String]) -> Result<String> {
        let lines: Vec<_> = self.lines(parents).filter(|line| !line.points.is_empty()).collect();
        let mut svg = String::new();
        draw(&mut svg, &lines).map_err(|e| Error::InvalidArgument {
            name: "plot",
            reason: format!("it can't be drawn: {e}"),
        })?;
        Ok(svg)
    }

    fn lines<'a>(&'a self, parents: &'a [String]) -> impl Iterator<Item = Line> + 'a {
        let recipes = self.trials.iter().map(|trial| trial.recipe + 1).max().unwrap_or(0);
        (0..recipes).flat_map(move |recipe| {
            let tried: Vec<&Trial> =
                self.trials.iter().filter(|trial| trial.recipe == recipe).collect();
            let best = tried.iter().min_by(|a, b| key(a).total_cmp(&key(b))).copied();
            let line = move |(parent, name): (usize, &String)| {
                let best = best?;
                Some(Line {
                    label: format!("{} by the weight of {name}", best.method),
                    points: slice(&tried, best, parent),
                })
            };
            parents.iter().enumerate().filter_map(line).collect::<Vec<_>>()
        })
    }
}

struct Line {
    label: String,
    points: Vec<(f64, f64)>,
}

/// To sort by loss; what has none comes last.
fn key(trial: &Trial) -> f64 {
    trial.loss.unwrap_or(f64::INFINITY)
}

/// The losses of those trials that differ from the best in the weight of one parent alone.
fn slice(tried: &[&Trial], best: &Trial, parent: usize) -> Vec<(f64, f64)> {
    let is_beside = |trial: &&&Trial| {
        let pairs = trial.weights.iter().zip(&best.weights).enumerate();
        pairs.filter(|(i, _)| *i != parent).all(|(_, (a, b))| a == b)
    };
    let point = |trial: &&Trial| Some((*trial.weights.get(parent)?, trial.loss?));
    let mut points: Vec<_> = tried.iter().filter(is_beside).filter_map(point).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn draw(svg: &mut String, lines: &[Line]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let (x, y) = (padded(points().map(|point| point.0)), padded(points().map(|point| point.1)));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc("weight")
        .y_desc("loss, nats a token")
        .light_line_style(WHITE)
        .draw()?;
    for (i, Line { label, points }) in lines.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}
