//! A round split over machines.

use epiphyte::federated::aggregate::{Inputs, Mode, OptimizerState, Trust, aggregate, partial};
use epiphyte::federated::{Factors, Published};

use super::{Folder, RANK, delta, key, options, parent, plan, run, server, trust};

const CASES: [(Mode, Factors); 5] = [
    (Mode::FedAvg, Factors::Both),
    (Mode::RoLora, Factors::B),
    (Mode::Ffa, Factors::B),
    (Mode::Svd, Factors::Both),
    (Mode::Stack, Factors::Both),
];

fn part(parent: &Published, mode: Mode, files: &[std::path::PathBuf]) -> Vec<u8> {
    let (options, trust) = (options(mode), trust());
    partial(&Inputs { parent, options: &options, trust: &trust, files }, &server()).unwrap().0
}

#[test]
fn no_partition_changes_a_bit() {
    for (mode, factors) in CASES {
        let parent = parent(plan(factors));
        let folder = Folder::new((0..12).map(|client| delta(&parent, client, RANK, 0.05)));
        let files = folder.files();
        let whole = run(&parent, &options(mode), &files).version.unwrap();
        for cuts in [vec![6], vec![1, 2], vec![3, 6, 9], vec![0, 12]] {
            let ends = cuts.iter().copied().chain([files.len()]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let parts =
                starts.zip(ends).map(|(start, end)| part(&parent, mode, &files[start..end]));
            let parts = Folder::new(parts);
            let outcome = run(&parent, &options(mode), &parts.files());
            assert_eq!(outcome.report.taken, 12, "{:?}", outcome.report);
            let version = outcome.version.unwrap();
            assert_eq!(version.bytes(), whole.bytes(), "{} at {cuts:?}", mode.name());
            // Parts of parts, and parts beside deltas.
            let both = Folder::new([part(&parent, mode, &parts.files()[1..])]);
            let mut mixed = files[..cuts[0]].to_vec();
            mixed.extend(both.files());
            let version = run(&parent, &options(mode), &mixed).version.unwrap();
            assert_eq!(version.bytes(), whole.bytes(), "{} at {cuts:?}, mixed", mode.name());
        }
    }
}

#[test]
fn a_part_of_strangers_is_left_out_and_one_of_another_round_stops_the_run() {
    let parent = parent(plan(Factors::B));
    let folder = Folder::new((0..3).map(|client| delta(&parent, client, RANK, 0.05)));
    let (options_, trust_) = (options(Mode::RoLora), trust());
    let files = folder.files();
    let inputs = Inputs { parent: &parent, options: &options_, trust: &trust_, files: &files };
    let (forged, _) = partial(&inputs, &key(9)).unwrap();
    let mut with_forged = files.clone();
    with_forged.push(folder.put("forged.part", &forged));
    let outcome = run(&parent, &options_, &with_forged);
    let entry = outcome.report.entries.iter().find(|e| e.file == "forged.part").unwrap();
    assert!(entry.reason.as_ref().unwrap().contains("may not sign parts"), "{entry:?}");
    assert_eq!(outcome.report.taken, 3);

    let (good, _) = partial(&inputs, &server()).unwrap();
    let stops = |files: &[std::path::PathBuf], mode| {
        let (options, trust) = (options(mode), Trust { ..trust() });
        let inputs = Inputs { parent: &parent, options: &options, trust: &trust, files };
        let next = parent.manifest.next.clone();
        match aggregate(&inputs, next, &mut OptimizerState::new(), &server()) {
            Ok(_) => panic!("it went on"),
            Err(e) => e.to_string(),
        }
    };
    let part = folder.put("good.part", &good);
    assert!(stops(std::slice::from_ref(&part), Mode::Ffa).contains("other options"));
    let twice = [part, folder.path().join("000.delta")];
    let same = run(&parent, &options_, &twice);
    assert_eq!((same.report.taken, same.report.refused), (3, 1), "the same delta again");
    let once_more = folder.put("again.part", &good);
    assert!(stops(&[twice[0].clone(), once_more], Mode::RoLora).contains("in another part"));
}

#[test]
fn a_report_keeps_the_worst_and_counts_all() {
    let parent = parent(plan(Factors::B));
    let folder = Folder::new((0..8).map(|client| delta(&parent, client, RANK, 0.02)));
    folder.put("half.delta", b"half an upload");
    folder.put("again.delta", &delta(&parent, 3, RANK, 0.02));
    let options = options(Mode::RoLora);
    let mut report = run(&parent, &options, &folder.files()).report;
    let counts = report.refusals.clone();
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("duplicate", 1), ("unreadable", 1)]);
    let farthest = report.entries.iter().filter_map(|entry| entry.cosine).fold(1.0, f64::min);
    report.keep_worst(3);
    assert_eq!((report.taken, report.refused, report.entries_left_out), (8, 2, 7));
    let kept: Vec<_> = report.entries.iter().filter(|entry| entry.is_taken()).collect();
    assert_eq!((report.entries.len(), kept.len()), (3, 1));
    assert_eq!(kept[0].cosine, Some(farthest));
    report.keep_worst(3);
    assert_eq!(report.entries_left_out, 7);
    // A part carries why it left something out.
    let (bytes, _) = partial(
        &Inputs { parent: &parent, options: &options, trust: &trust(), files: &folder.files() },
        &server(),
    )
    .unwrap();
    let parts = Folder::new([]);
    let part = parts.put("one.part", &bytes);
    let report = run(&parent, &options, &[part]).report;
    assert_eq!(report.refusals.len(), 2, "{:?}", report.refusals);
}
