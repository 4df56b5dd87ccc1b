//! `epiphyte formats`: what is left of numbers in each format.

use clap::Args;
use serde::Serialize;

use crate::output;
use epiphyte::error::Result;
use epiphyte::numbers::{NumberFormat, Stored};

/// Show numbers as each format stores them: bits, value, error
#[derive(Args)]
pub(super) struct FormatsArgs {
    /// Numbers; together they are the block that shares a scale in INT8, INT4 and NF4
    #[arg(required = true, allow_negative_numbers = true)]
    numbers: Vec<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    formats: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    format: NumberFormat,
    /// Bits a number, with its share of a scale.
    bits: f64,
    numbers: Vec<Stored>,
}

pub(super) fn run(args: &FormatsArgs) -> Result<()> {
    let row = |format: NumberFormat| Row {
        format,
        bits: format.n_bits_with_scale(),
        numbers: format.store(&args.numbers),
    };
    let report = Report { formats: NumberFormat::ALL.into_iter().map(row).collect() };
    if args.json {
        return output::json(&report);
    }
    for (i, given) in args.numbers.iter().enumerate() {
        let blank = if i > 0 { "\n" } else { "" };
        output::line(&format!("{blank}{given}"))?;
        for row in &report.formats {
            output::line(&line(row, &row.numbers[i]))?;
        }
    }
    output::line("\nGB for a billion numbers, scales included:")?;
    let cost = |row: &Row| format!("{} {:.2}", row.format.name(), row.bits / 8.0);
    output::line(&report.formats.iter().map(cost).collect::<Vec<_>>().join(", "))
}

fn line(row: &Row, stored: &Stored) -> String {
    let error = stored.value - stored.given;
    let relative = match stored.given {
        0.0 => String::new(),
        given => format!(" ({:+.2e})", error / given.abs()),
    };
    let scale = stored.scale.map(|scale| format!(" x {scale}")).unwrap_or_default();
    let bits = format!("{}{scale}", stored.bits);
    format!("  {:9} {bits:36} {:<20} error {error:+.3e}{relative}", row.format.name(), stored.value)
}
