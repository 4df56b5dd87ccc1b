//! The linear classifier: its minimum, what it tells, its file.

use epiphyte::Error;
use epiphyte::classify::{Classifier, Features, FitOptions, Pooling, Scores, Vectors, fit};

use crate::common::Random;

const BASE: &str = "epiphyte-base-1:0123";

/// Three clouds of points, of which some lie in another's.
fn clouds(seed: u64, n: usize) -> (Vectors, Vec<&'static str>) {
    let (mut random, mut vectors) = (Random::new(seed), Vectors::new(4));
    let mut unit = move || f64::from(random.below(1 << 20)) / f64::from(1 << 19) - 1.0;
    let mut labels = Vec::new();
    for i in 0..n {
        let center =
            [[2.0, 0.0, 100.0, 0.0], [-1.0, 1.5, 101.0, 0.0], [-1.0, -1.5, 99.0, 0.0]][i % 3];
        let point = center.map(|c| (c + 1.6 * (unit() + unit())) as f32);
        vectors.push(&[point[0], point[1], point[2], 7.0]).unwrap();
        labels.push(["cat", "ant", "bee"][i % 3]);
    }
    (vectors, labels)
}

fn learnt(options: &FitOptions) -> (Classifier, usize) {
    let (vectors, labels) = clouds(1, 600);
    fit(&vectors, &labels, (BASE, Features::default()), options).unwrap()
}

/// Mean loss of the labels, without a penalty.
fn loss(classifier: &Classifier, vectors: &Vectors, labels: &[&str]) -> f64 {
    let mut sum = 0.0;
    for (vector, label) in vectors.rows().zip(labels) {
        let number = classifier.labels.iter().position(|known| known == label).unwrap();
        sum -= classifier.predict(vector).unwrap().probabilities[number].ln();
    }
    sum / labels.len() as f64
}

#[test]
fn it_tells_clouds_apart_and_is_the_same_again() {
    let (classifier, steps) = learnt(&FitOptions::default());
    assert_eq!(classifier.labels, ["ant", "bee", "cat"]);
    assert!(steps < 200, "{steps}");
    assert_eq!(learnt(&FitOptions::default()).0, classifier);
    let (vectors, labels) = clouds(2, 300);
    let mut scores = Scores::new(&classifier);
    for (vector, label) in vectors.rows().zip(&labels) {
        let told = classifier.predict(vector).unwrap();
        assert!((told.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        scores.add(label, told.label).unwrap();
    }
    let accuracy = scores.accuracy().unwrap();
    assert!((0.75..1.0).contains(&accuracy), "{accuracy}");
    assert_eq!(scores.examples(), 300);
    let ant = &scores.by_label()[0];
    assert_eq!((ant.label.as_str(), ant.support), ("ant", 100));
    assert_eq!(ant.recall, Some(scores.confusion[0][0] as f64 / 100.0));
    let taken: usize = scores.confusion.iter().map(|row| row[0]).sum();
    assert_eq!(ant.precision, Some(scores.confusion[0][0] as f64 / taken as f64));
    assert!(scores.add("dog", 0).is_err());
}

/// `classify.py` in tests/learning holds it to scikit-learn.
#[test]
fn its_minimum_is_the_one_there_is() {
    let (vectors, labels) = clouds(1, 600);
    let loss_at = |c| {
        loss(&learnt(&FitOptions { c, tol: 1e-9, ..FitOptions::default() }).0, &vectors, &labels)
    };
    // A weaker penalty fits better, down to where only the data counts.
    let losses = [1e-3, 1e-2, 1.0, 1e4, 1e8].map(loss_at);
    assert!(losses.is_sorted_by(|a, b| *a >= b - 1e-12), "{losses:?}");
    assert!((losses[3] - losses[4]).abs() < 1e-6, "{losses:?}");
    // Where the penalty is all, every label is as likely as it is frequent.
    let (none, _) = learnt(&FitOptions { c: 1e-12, ..FitOptions::default() });
    let told = none.predict(&[0.0, 0.0, 100.0, 7.0]).unwrap();
    assert!(told.probabilities.iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-3), "{told:?}");
    // Without a penalty the points' scale does not matter.
    let raw = FitOptions { standardize: false, c: 1e8, tol: 1e-7, max_iter: 5000 };
    let (unscaled, _) = learnt(&raw);
    assert!((loss(&unscaled, &vectors, &labels) - losses[4]).abs() < 1e-4);
}

#[test]
fn a_file_is_read_back_on_its_base_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let (vectors, labels) = clouds(1, 60);
    let features = Features { pooling: Pooling::Last, normalize: true };
    let (classifier, _) = fit(&vectors, &labels, (BASE, features), &FitOptions::default()).unwrap();
    classifier.save(&path).unwrap();
    let read = Classifier::open(&path).unwrap();
    assert_eq!(read, classifier);
    read.check_base(BASE).unwrap();
    let other = read.check_base("epiphyte-base-1:4567").unwrap_err();
    assert!(
        matches!(other, Error::BaseMismatch { .. } | Error::FingerprintVersion { .. }),
        "{other}"
    );

    let bytes = std::fs::read(&path).unwrap();
    let damage = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&path, bytes).unwrap();
        Classifier::open(&path).unwrap_err()
    };
    let version = damage(b"classifier.1", b"classifier.2");
    assert!(matches!(version, Error::FormatVersion { .. }), "{version}");
    let labels = damage(b"epiphyte.labels", b"epiphyte.lapels").to_string();
    assert!(labels.contains("epiphyte.labels"), "{labels}");
    let features = damage(b"last", b"lost").to_string();
    assert!(features.contains("epiphyte.features"), "{features}");
    let at = bytes.len() - 4;
    let mut not_finite = bytes.clone();
    not_finite[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, not_finite).unwrap();
    let nan = Classifier::open(&path).unwrap_err();
    assert!(matches!(nan, Error::InvalidTensor { .. }), "{nan}");
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(Classifier::open(&path).is_err(), "{len} bytes of it");
    }
}

#[test]
fn what_cant_be_learnt_from_is_refused_by_name() {
    let (vectors, labels) = clouds(1, 6);
    let name = |result: Result<(Classifier, usize), Error>| match result {
        Err(Error::InvalidArgument { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    let on =
        |labels: &[&str], options| fit(&vectors, labels, (BASE, Features::default()), &options);
    let default = FitOptions::default;
    assert_eq!(name(on(&labels[..5], default())), "labels");
    assert_eq!(name(on(&["one"; 6], default())), "labels");
    assert_eq!(name(on(&labels, FitOptions { c: 0.0, ..default() })), "C");
    assert_eq!(name(on(&labels, FitOptions { c: f64::NAN, ..default() })), "C");
    assert_eq!(name(on(&labels, FitOptions { tol: -1.0, ..default() })), "tol");
    assert_eq!(name(on(&labels, FitOptions { max_iter: 0, ..default() })), "max_iter");
    let mut vectors = Vectors::new(2);
    assert!(vectors.push(&[1.0]).is_err() && vectors.push(&[1.0, f32::NAN]).is_err());
    assert!(vectors.is_empty());
    let (classifier, _) = on(&labels, default()).unwrap();
    assert!(classifier.predict(&[1.0]).is_err());
}

#[test]
fn vectors_are_written_as_numpy_and_safetensors_have_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut vectors = Vectors::new(2);
    vectors.push(&[1.0, -2.0]).unwrap();
    vectors.push(&[0.5, 3.0]).unwrap();
    let (npy, tensors) = (folder.path().join("v.npy"), folder.path().join("v.safetensors"));
    vectors.save(&npy, BASE).unwrap();
    vectors.save(&tensors, BASE).unwrap();
    let bytes = std::fs::read(&npy).unwrap();
    let data: Vec<u8> = [1.0_f32, -2.0, 0.5, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00") && bytes.ends_with(&data));
    let head = bytes.len() - data.len();
    assert_eq!((head % 64, usize::from(bytes[8]) + 256 * usize::from(bytes[9])), (0, head - 10));
    let text = std::str::from_utf8(&bytes[10..head]).unwrap();
    assert!(text.contains("'shape': (2, 2)") && text.ends_with('\n'), "{text}");
    let file = std::fs::read(&tensors).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(file.tensor("embeddings").unwrap().shape(), [2, 2]);
    assert_eq!(file.tensor("embeddings").unwrap().data(), data);
}
