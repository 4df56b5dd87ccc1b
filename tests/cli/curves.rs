//! The picture of the losses.

#[path = "../../runtime/cli/train/svg.rs"]
mod svg;

use epiphyte::Error;
use epiphyte::train::signals::History;

use svg::loss_curves;

#[test]
fn curves_are_drawn_for_any_history() {
    let falling = |step: u64| (step, 1.0 + 2.0 * (-(step as f64) / 60.0).exp());
    let mut run = History { training: (1..=200).map(falling).collect(), validation: vec![] };
    run.training[50].1 = f64::NAN;
    run.validation = vec![(100, 1.5), (200, 1.25)];
    let svg = loss_curves(&run).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    for word in ["training", "validation", "step", "loss"] {
        assert!(svg.contains(word), "{word}");
    }
    assert_eq!(svg.matches("<circle").count(), 2);
    let line =
        svg.split("<polyline").map(|line| line.split("points=\"").nth(1).unwrap_or_default());
    let longest = line
        .map(|points| points.split('"').next().unwrap_or_default().split_whitespace().count())
        .max();
    assert_eq!(longest, Some(199), "every finite loss has its point");
    let one = History { training: vec![(1, 2.0)], validation: vec![] };
    assert_eq!(loss_curves(&one).unwrap().matches("<circle").count(), 1, "a line needs two points");
    for one in [vec![(7, 2.0)], vec![(7, 0.0)], vec![(0, -1.0), (u64::MAX, 1e300)]] {
        assert!(loss_curves(&History { training: one, validation: vec![] }).is_ok());
    }
    for none in [vec![], vec![(1, f64::NAN)]] {
        let error = loss_curves(&History { training: none, validation: vec![] }).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { name: "history", .. }));
    }
}
