//! The accountant against PyPI's dp-accounting 0.6.0 (RDP, Poisson sampling, add or remove one).

use epiphyte::federated::privacy::Rounds;

#[test]
fn epsilon_is_that_of_dp_accounting() {
    // tests/golden/privacy.py printed these.
    for (sampling, sigma, rounds, delta, want) in [
        (0.01, 0.6, 100, 1e-6, 5.790717170482903),
        (0.01, 1.0, 100, 1e-6, 1.5073894923617364),
        (0.01, 1.0, 1000, 1e-6, 2.4366938030221523),
        (0.001, 0.6, 1000, 1e-7, 3.7314550487226863),
        (0.1, 1.0, 50, 1e-5, 5.88542727658131),
        (0.1, 2.0, 50, 1e-5, 1.843951861015158),
        (1.0, 5.0, 20, 1e-5, 4.161624306053592),
    ] {
        let got = Rounds { sampling, sigma, rounds }.epsilon(delta).unwrap().epsilon;
        println!("q {sampling} sigma {sigma} T {rounds} delta {delta}: {got:.4}, theirs {want:.4}");
        assert!((got / want - 1.0).abs() < 0.01, "{got} is not {want}");
    }
}

/// Sampling, sigma, order, and the divergence of one round: of whole orders by dp-accounting, of
/// others by scipy's quadrature (`tests/golden/privacy.py`), below dp-accounting's bound on them.
const RDPS: [(f64, f64, f64, f64); 13] = [
    (0.01, 0.6, 1.5, 0.0009655384079612897),
    (0.01, 0.6, 2.0, 0.0015071876890013268),
    (0.01, 0.6, 3.7, 0.020236104646308893),
    (0.01, 0.6, 16.0, 17.310040690501594),
    (0.01, 0.6, 64.0, 84.21062076344067),
    (0.1, 1.0, 2.0, 0.017036863236176605),
    (0.1, 1.0, 3.7, 0.048331624426028605),
    (0.1, 1.0, 16.0, 5.5439121709021215),
    (0.1, 1.0, 64.0, 29.66086593727589),
    (0.001, 2.0, 1.5, 2.1298596995528703e-07),
    (0.001, 2.0, 2.0, 2.840253763520833e-07),
    (0.001, 2.0, 16.0, 2.2821424743719574e-06),
    (0.001, 2.0, 64.0, 0.9827446359630388),
];

#[test]
fn the_divergence_is_right_at_whole_and_at_broken_orders() {
    for (sampling, sigma, order, want) in RDPS {
        let got = Rounds { sampling, sigma, rounds: 1 }.rdp(order);
        assert!((got / want - 1.0).abs() < 1e-6, "q {sampling} at {order}: {got:e}, not {want:e}");
    }
}

#[test]
fn more_noise_fewer_rounds_and_rarer_sampling_tell_less() {
    let of =
        |sampling, sigma, rounds| Rounds { sampling, sigma, rounds }.epsilon(1e-6).unwrap().epsilon;
    assert!(of(0.01, 1.0, 100) < of(0.01, 0.8, 100));
    assert!(of(0.01, 1.0, 100) < of(0.01, 1.0, 101));
    assert!(of(0.01, 1.0, 100) < of(0.02, 1.0, 100));
    assert!(of(0.999, 1.0, 10) <= of(1.0, 1.0, 10));
    assert_eq!(of(0.5, 0.0, 1), f64::INFINITY, "no noise, no privacy");
    assert_eq!(of(0.5, 1.0, 0), 0.0);
    for bad in [(0.0, 1.0), (1.5, 1.0), (f64::NAN, 1.0), (0.5, -1.0), (0.5, f64::NAN)] {
        let rounds = Rounds { sampling: bad.0, sigma: bad.1, rounds: 1 };
        assert!(rounds.epsilon(1e-6).is_err(), "{bad:?}");
    }
    assert!(Rounds { sampling: 0.5, sigma: 1.0, rounds: 1 }.epsilon(0.0).is_err());
}
