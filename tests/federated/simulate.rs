//! Examples over devices.

use epiphyte::Error;
use epiphyte::federated::simulate::{Split, choose, split};

/// 400 examples of 8 labels, some more frequent than others.
fn labels() -> Vec<String> {
    (0..400).map(|i| format!("label {}", (i * i) % 17 % 8)).collect()
}

fn spread(alpha: Option<f64>, seed: u64) -> Vec<Vec<usize>> {
    split(&labels(), &Split { clients: 10, alpha, seed }).unwrap()
}

/// Mean number of labels that a device has.
fn labels_of(devices: &[Vec<usize>]) -> f64 {
    let labels = labels();
    let of = |places: &Vec<usize>| {
        let own: std::collections::BTreeSet<_> = places.iter().map(|i| &labels[*i]).collect();
        own.len() as f64
    };
    devices.iter().map(of).sum::<f64>() / devices.len() as f64
}

#[test]
fn every_example_goes_to_one_device_and_a_small_alpha_gives_few_labels() {
    for (alpha, seed) in [(None, 1), (Some(0.1), 1), (Some(1.0), 2), (Some(100.0), 3)] {
        let devices = spread(alpha, seed);
        let mut all: Vec<_> = devices.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..400).collect::<Vec<_>>(), "{alpha:?}");
        assert!(devices.iter().all(|places| places.len() >= 4), "{alpha:?}");
        assert_eq!(devices, spread(alpha, seed), "{alpha:?}");
        assert_ne!(devices, spread(alpha, seed + 1), "{alpha:?}");
    }
    assert!(spread(None, 1).iter().all(|places| places.len() == 40));
    let [few, many] = [0.1, 100.0].map(|alpha| labels_of(&spread(Some(alpha), 5)));
    println!("labels a device: {few} at 0.1, {many} at 100");
    assert!(few < 0.6 * many, "{few} {many}");
}

#[test]
fn what_can_not_be_split_is_refused_by_name() {
    let of =
        |labels: &[String], clients, alpha| match split(labels, &Split { clients, alpha, seed: 0 })
        {
            Err(Error::InvalidArgument { name, .. }) => name,
            other => panic!("{other:?}"),
        };
    let labels = labels();
    assert_eq!(of(&labels, 0, None), "clients");
    assert_eq!(of(&labels, 401, None), "clients");
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(of(&labels, 10, Some(alpha)), "alpha");
    }
    // One label goes to one device whole, so the others have nothing.
    let one = vec!["the same".to_string(); 100];
    assert_eq!(of(&one, 10, Some(1e-6)), "alpha");
}

#[test]
fn who_takes_part_is_drawn_from_all() {
    let mut seen = [0; 20];
    for round in 0..200 {
        let chosen = choose(20, 5, round);
        assert!(chosen.len() == 5 && chosen.is_sorted_by(|a, b| a < b), "{chosen:?}");
        chosen.iter().for_each(|device| seen[*device] += 1);
    }
    // 50 each, within five standard errors.
    assert!(seen.iter().all(|count| (20..80).contains(count)), "{seen:?}");
    assert_eq!(choose(3, 9, 1), [0, 1, 2]);
}
