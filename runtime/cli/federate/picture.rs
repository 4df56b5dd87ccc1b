//! What the rounds reached, as a picture: by round and by bytes.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::simulation::Score;
use epiphyte::{Error, Result};

const SIZE: (u32, u32) = (960, 420);
const LINE: RGBColor = RGBColor(0x1f, 0x77, 0xb4);

/// A version that was measured.
pub(super) struct Point {
    pub(super) round: u64,
    /// All that was sent and received until then.
    pub(super) bytes: u64,
    pub(super) score: Score,
}

/// The exact answers of each version, in percent, or the losses where there are no answers, as an
/// SVG document: on the left by round, on the right by bytes.
///
/// Errors: [`Error::InvalidArgument`] when it can't be drawn.
pub(super) fn rounds(scores: &[Point]) -> Result<String> {
    let answers = scores.iter().all(|point| point.score.exact_match.is_some());
    let value = |score: &Score| match answers {
        true => 100.0 * score.exact_match.unwrap_or_default(),
        false => score.loss.unwrap_or(f64::NAN),
    };
    let mut points = [Vec::new(), Vec::new()];
    for Point { round, bytes, score } in scores {
        points[0].push((*round as f64, value(score)));
        points[1].push((*bytes as f64 / 1e6, value(score)));
    }
    let y = if answers { "exact answers, %" } else { "loss, nats a token" };
    let mut svg = String::new();
    draw(&mut svg, y, &points).map_err(|e| Error::InvalidArgument {
        name: "plot",
        reason: format!("it can't be drawn: {e}"),
    })?;
    Ok(svg)
}

type Points = Vec<(f64, f64)>;

fn draw(svg: &mut String, y: &str, points: &[Points; 2]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    for ((area, x), points) in [(left, "round"), (right, "MB sent and received")].iter().zip(points)
    {
        let fold = |pick: fn(f64, f64) -> f64, of: fn(&(f64, f64)) -> f64| {
            points.iter().map(of).filter(|v| v.is_finite()).reduce(pick).unwrap_or_default()
        };
        let (low, high) = (fold(f64::min, |p| p.1), fold(f64::max, |p| p.1));
        let margin = f64::max(0.05 * (high - low), 1e-3 * high.abs().max(1.0));
        let last = fold(f64::max, |p| p.0);
        let ranges = (0.0..last * 1.02, low - margin..high + margin);
        let mut chart: ChartContext<'_, _, Cartesian2d<RangedCoordf64, RangedCoordf64>> =
            ChartBuilder::on(area)
                .margin(14)
                .x_label_area_size(40)
                .y_label_area_size(52)
                .build_cartesian_2d(ranges.0, ranges.1)?;
        chart.configure_mesh().x_desc(*x).y_desc(y).light_line_style(WHITE).draw()?;
        chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, LINE.filled())))?;
    }
    root.present()?;
    Ok(())
}
