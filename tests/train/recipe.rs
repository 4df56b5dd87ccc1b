//! What a run does unless it is told otherwise.

use epiphyte::train::data::Validation;
use epiphyte::train::recipe::{epochs, learning_rate, prompt_loss_weight, validation};

#[test]
fn few_examples_get_many_passes_and_many_examples_more_steps() {
    let counts = [1, 20, 50, 100, 400, 1000, 2000, 10_000];
    assert!(counts.windows(2).all(|pair| epochs(pair[0]) >= epochs(pair[1])));
    let shown: Vec<u64> = counts.iter().map(|&count| epochs(count) * count as u64).collect();
    assert!(shown.windows(2).all(|pair| pair[0] < pair[1]), "{shown:?}");
    assert!((4..=10).contains(&epochs(1000)));
    assert_eq!((epochs(0), epochs(usize::MAX)), (50, 1));
}

#[test]
fn the_rate_falls_with_what_moves_the_product_of_the_factors() {
    let usual = learning_rate(576, 8, 2.0, 400);
    assert!(
        (usual / learning_rate(576, 8, 4.0, 400) - 2.0).abs() < 1e-12,
        "twice the scaling, half the rate"
    );
    assert!((usual / learning_rate(576, 32, 2.0, 400) - 2.0).abs() < 1e-12, "four times the rank");
    assert!(learning_rate(4096, 8, 2.0, 400) < learning_rate(2048, 8, 2.0, 400));
    assert!((learning_rate(576, 8, 2.0, 199) / usual - 1.5).abs() < 1e-12, "few examples");
    assert_eq!(learning_rate(576, 8, 2.0, 200), usual);
}

#[test]
fn prompts_are_learnt_where_there_are_enough() {
    assert_eq!([0, 199, 200, 500].map(prompt_loss_weight), [0.0, 0.0, 0.1, 0.1]);
}

#[test]
fn some_records_are_held_out_where_there_are_enough() {
    assert_eq!(validation(499), None);
    assert_eq!(validation(500), Some(Validation::Count(50)));
    assert_eq!(validation(1_000_000), Some(Validation::Count(200)));
}
