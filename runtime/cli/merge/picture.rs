//! What is left of each parent, and what the rank cut off of each module, as bars.

use plotters::prelude::*;

use epiphyte::error::{Error, Result};
use epiphyte::merge::MergeReport;

const SIZE: (u32, u32) = (900, 640);
const COSINE: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const LOST: RGBColor = RGBColor(0xd6, 0x27, 0x28);
/// Part of a bar's place that is left free.
const GAP: f64 = 0.15;

/// An SVG document.
pub(super) fn draw(report: &MergeReport) -> Result<String> {
    let mut svg = String::new();
    panels(&mut svg, report).map_err(|e| Error::InvalidArgument {
        name: "plot",
        reason: format!("it can't be drawn: {e}"),
    })?;
    Ok(svg)
}

fn panels(svg: &mut String, report: &MergeReport) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    let cosines: Vec<_> = report.parents.iter().map(|parent| parent.cosine).collect();
    let names: Vec<_> = report.parents.iter().map(|parent| parent.id.clone()).collect();
    let labels = |i: usize| names.get(i).cloned().unwrap_or_default();
    let caption = format!("{}: cosine of each parent with the result", report.recipe.method.name());
    bars(&upper, &Bars { caption: &caption, values: &cosines, colour: COSINE, labels: &labels })?;
    let lost: Vec<_> = report.modules.iter().map(|module| 100.0 * module.lost).collect();
    let labels = |_| String::new();
    let caption = "norm that the rank cut off, % of each module, in the order of the model";
    bars(&lower, &Bars { caption, values: &lost, colour: LOST, labels: &labels })?;
    root.present()?;
    Ok(())
}

struct Bars<'a> {
    caption: &'a str,
    values: &'a [f64],
    colour: RGBColor,
    labels: &'a dyn Fn(usize) -> String,
}

fn bars(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    bars: &Bars<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    let low = bars.values.iter().copied().fold(0.0, f64::min);
    let high = bars.values.iter().copied().fold(0.0, f64::max);
    let margin = 0.05 * (high - low).max(0.1);
    let n = bars.values.len();
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .caption(bars.caption, ("sans-serif", 16))
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..n.max(1) as f64, low - margin..high + margin)?;
    // A name stands in the middle of its bar.
    let label = |x: &f64| {
        let at = x.floor();
        if at < n as f64 && x.fract() == 0.5 { (bars.labels)(at as usize) } else { String::new() }
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(2 * n + 1)
        .x_label_formatter(&label)
        .draw()?;
    chart.draw_series(bars.values.iter().enumerate().map(|(i, value)| {
        let (left, right) = (i as f64 + GAP, (i + 1) as f64 - GAP);
        Rectangle::new([(left, 0.0), (right, *value)], bars.colour.filled())
    }))?;
    Ok(())
}
