//! The loss curves as a picture.

use std::ops::Range;

use plotters::prelude::*;

use epiphyte::train::signals::History;
use epiphyte::{Error, Result};

const SIZE: (u32, u32) = (800, 480);
/// So few steps are drawn as points, too: a line needs two.
const FEW: usize = 16;
const TRAINING: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const VALIDATION: RGBColor = RGBColor(0xd6, 0x27, 0x28);

/// Training and validation loss by step, as an SVG document. Losses that are not finite are left
/// out.
///
/// Errors: [`Error::InvalidArgument`] for a history without a finite loss.
pub(crate) fn loss_curves(history: &History) -> Result<String> {
    let finite = |losses: &[(u64, f64)]| {
        losses.iter().copied().filter(|(_, loss)| loss.is_finite()).collect::<Vec<_>>()
    };
    let (training, validation) = (finite(&history.training), finite(&history.validation));
    let Some((steps, losses)) = ranges(&[&training[..], &validation[..]].concat()) else {
        return Err(Error::InvalidArgument {
            name: "history",
            reason: "there are no losses to draw yet".into(),
        });
    };
    let mut svg = String::new();
    draw(&mut svg, steps, losses, &training, &validation).map_err(|e| Error::InvalidArgument {
        name: "history",
        reason: format!("it can't be drawn: {e}"),
    })?;
    Ok(svg)
}

/// The axes: what there is and a little more. `None` without a point.
fn ranges(points: &[(u64, f64)]) -> Option<(Range<u64>, Range<f64>)> {
    let steps = points.iter().map(|(step, _)| *step);
    let (first, last) = (steps.clone().min()?, steps.max()?);
    let losses = padded(points.iter().map(|(_, loss)| *loss));
    Some((first..last.max(first + 1), losses))
}

/// From the least to the largest and a little more.
pub(crate) fn padded(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let (low, high) =
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
    let margin = f64::max(0.05 * (high - low), 1e-3 * high.abs().max(1e-3));
    low - margin..high + margin
}

fn draw(
    svg: &mut String,
    steps: Range<u64>,
    losses: Range<f64>,
    training: &[(u64, f64)],
    validation: &[(u64, f64)],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(steps, losses)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss, nats a token")
        .light_line_style(WHITE)
        .draw()?;
    for (name, colour, points) in
        [("training", TRAINING, training), ("validation", VALIDATION, validation)]
    {
        if points.is_empty() {
            continue;
        }
        let line =
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        line.label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        if name == "validation" || points.len() <= FEW {
            chart
                .draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}
