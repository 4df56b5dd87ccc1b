//! `epiphyte privacy`: what noise is worth before a round is run.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::output;
use crate::paths::{Files, Kind};
use epiphyte::error::{Error, Result};
use epiphyte::federated::privacy::{Guarantee, Rounds};
use epiphyte::format::write_whole;

/// Say how much averaging tells of one device: epsilon for a plan
#[derive(Args)]
pub(super) struct PrivacyArgs {
    /// Devices in all
    #[arg(long, value_name = "N")]
    clients: u64,
    /// Devices that take part in a round, on average
    #[arg(long, value_name = "N")]
    per_round: u64,
    /// Noise on the sum of a round, in clip norms (devices' own shares: their sigma times the root
    /// of how many came)
    #[arg(long)]
    sigma: f64,
    /// Rounds
    #[arg(long, value_name = "N")]
    rounds: u64,
    /// Probability that the guarantee fails [default: a tenth of 1 / clients]
    #[arg(long)]
    delta: Option<f64>,
    /// Write a plot of epsilon by rounds
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Plan {
    #[serde(flatten)]
    rounds: Rounds,
    /// If who takes part is drawn at random, and nobody knows who was.
    sampled: Guarantee,
    /// If a device may be in every round.
    not_amplified: Guarantee,
}

pub(super) fn run(args: &PrivacyArgs) -> Result<()> {
    let refuse = |name, reason: &str| Err(Error::InvalidArgument { name, reason: reason.into() });
    if args.clients == 0 || args.per_round == 0 || args.per_round > args.clients {
        return refuse("per_round", "1 to the number of clients is allowed");
    }
    if let Some(plot) = &args.plot {
        Files::default().writes("--plot", plot, Kind::Picture).check(None)?;
    }
    let delta = args.delta.unwrap_or(0.1 / args.clients as f64);
    let sampling = args.per_round as f64 / args.clients as f64;
    let rounds = Rounds { sampling, sigma: args.sigma, rounds: args.rounds };
    let all = Rounds { sampling: 1.0, ..rounds };
    let plan = Plan { rounds, sampled: rounds.epsilon(delta)?, not_amplified: all.epsilon(delta)? };
    if let Some(plot) = &args.plot {
        write_whole(plot, svg(rounds, delta)?.as_bytes())?;
    }
    if args.json {
        return output::json(&plan);
    }
    let (sampled, every) = (plan.sampled.epsilon, plan.not_amplified.epsilon);
    output::line(&format!(
        "epsilon {sampled:.2} at delta {delta:.1e}, if a device is in a round with probability \
        {sampling:.4}, at random and in secret\nepsilon {every:.2} if devices come when they \
        please: one may be in all {} rounds",
        args.rounds
    ))?;
    match sampled > 10.0 {
        true => output::line("that is no useful bound: more devices, more noise or fewer rounds"),
        false => Ok(()),
    }
}

/// Epsilon by rounds, with sampling and without.
fn svg(plan: Rounds, delta: f64) -> Result<String> {
    const POINTS: u64 = 24;
    let (width, height) = (640.0, 320.0);
    let mut curves = Vec::new();
    for sampling in [plan.sampling, 1.0] {
        let at = |i: u64| {
            let rounds = (plan.rounds * i).div_ceil(POINTS);
            let epsilon = Rounds { sampling, rounds, ..plan }.epsilon(delta)?.epsilon;
            Ok((rounds as f64, epsilon))
        };
        curves.push((0..=POINTS).map(at).collect::<Result<Vec<_>>>()?);
    }
    let most = curves.iter().flatten().map(|(_, e)| *e).filter(|e| e.is_finite());
    let most = most.fold(1e-9, f64::max);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
        font-family=\"sans-serif\" font-size=\"13\"><rect width=\"100%\" height=\"100%\" \
        fill=\"white\"/><path d=\"M50 20V280H620\" fill=\"none\" stroke=\"#444\"/>"
    );
    let styles = [("#285", "sampled at random", 60), ("#b52", "in every round", 200)];
    for (curve, (colour, name, x)) in curves.iter().zip(styles) {
        let place = |(rounds, epsilon): &(f64, f64)| {
            let x = 50.0 + 570.0 * rounds / plan.rounds.max(1) as f64;
            format!("{x:.1},{:.1}", 280.0 - 250.0 * epsilon.min(most) / most)
        };
        let points: Vec<_> = curve.iter().map(place).collect();
        let points = points.join(" ");
        // Writing to a string can't fail.
        let _ = write!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
            <text x=\"{x}\" y=\"16\" fill=\"{colour}\">{name}</text>"
        );
    }
    let _ = write!(
        out,
        "<text x=\"44\" y=\"34\" text-anchor=\"end\">{most:.1}</text><text x=\"44\" y=\"280\" \
        text-anchor=\"end\">0</text><text x=\"620\" y=\"300\" text-anchor=\"end\">{} rounds</text>\
        <text x=\"330\" y=\"312\" text-anchor=\"middle\">epsilon at delta {delta:.1e}, sigma {}</text>\
        </svg>",
        plan.rounds, plan.sigma
    );
    Ok(out)
}
