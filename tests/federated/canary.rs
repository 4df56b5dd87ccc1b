//! A planted PIN: how well those who get the average can guess it, with and without noise.
//!
//! A model small enough for the processor: a prompt is a vector, and LoRA on one linear gives the
//! digits' logits. One device learns a PIN by heart; its rank among all 10,000 says what is left.

use epiphyte::adapter::{Adapter, LoraModule};
use epiphyte::federated::aggregate::{AggregateOptions, CentralNoise, Mode, OverNorm, Weights};
use epiphyte::federated::privacy::Rounds;
use epiphyte::federated::{Factors, Published, RoundPlan};

use super::{Folder, SHAPE, delta_of, options, parent, plan, run, uniform};

const DEVICES: u8 = 5;
const PIN: [usize; 4] = [7, 0, 4, 9];
const STEPS: usize = 300;
/// Averages with noise, each of its own.
const DRAWS: usize = 41;
const RATE: f32 = 0.2;

/// The prompt that the PIN belongs to, or another.
fn prompt(number: u64) -> Vec<f32> {
    uniform(9000 + number, 32, 1.0)
}

/// Logits of ten digits at each of four places.
fn logits(module: &LoraModule, prompt: &[f32]) -> Vec<f32> {
    let along = |row: &[f32]| row.iter().zip(prompt).map(|(a, x)| a * x).sum::<f32>();
    let inner: Vec<_> = module.a.chunks(prompt.len()).map(along).collect();
    let outer = |row: &[f32]| row.iter().zip(&inner).map(|(b, y)| b * y).sum::<f32>();
    module.b.chunks(module.rank).take(40).map(|row| module.scaling * outer(row)).collect()
}

fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let of = |ten: &[f32]| {
        let sum: f32 = ten.iter().map(|z| z.exp()).sum();
        ten.iter().map(|z| z - sum.ln()).collect::<Vec<_>>()
    };
    logits.chunks(10).flat_map(of).collect()
}

/// Descends the loss of B's numbers on `prompt -> digits`.
fn learn(module: &mut LoraModule, examples: &[(Vec<f32>, [usize; 4])]) {
    for step in 0..STEPS {
        let (prompt, digits) = &examples[step % examples.len()];
        let along = |row: &[f32]| row.iter().zip(prompt).map(|(a, x)| a * x).sum::<f32>();
        let inner: Vec<_> = module.a.chunks(prompt.len()).map(along).collect();
        let chances = log_probabilities(&logits(module, prompt));
        for (i, row) in module.b.chunks_mut(module.rank).take(40).enumerate() {
            let wanted = if digits[i / 10] == i % 10 { 1.0 } else { 0.0 };
            let slope = chances[i].exp() - wanted;
            let step = RATE * slope * module.scaling / 10.0;
            row.iter_mut().zip(&inner).for_each(|(b, y)| *b -= step * y);
        }
    }
}

/// How many of the 10,000 PINs are at least as likely.
fn rank(version: &Adapter) -> usize {
    let chances = log_probabilities(&logits(&version.modules[0], &prompt(0)));
    let chance = |pin: [usize; 4]| (0..4).map(|i| chances[10 * i + pin[i]]).sum::<f32>();
    let own = chance(PIN);
    let pins = (0..10_000).map(|n| [n / 1000, n / 100 % 10, n / 10 % 10, n % 10]);
    pins.filter(|pin| chance(*pin) >= own).count()
}

fn taught(parent: &Published, device: u8) -> Adapter {
    let mut adapter = parent.adapter(&SHAPE).unwrap();
    let examples = (0..4).map(|i| {
        let number = 1 + 4 * u64::from(device) + i;
        let digits = uniform(5000 + number, 4, 1.0);
        let digits = digits.iter().map(|v| ((v + 1.0) * 5.0) as usize % 10).collect::<Vec<_>>();
        (prompt(number), [digits[0], digits[1], digits[2], digits[3]])
    });
    let mut examples: Vec<_> = examples.collect();
    if device == 0 {
        examples = vec![(prompt(0), PIN)];
    }
    learn(&mut adapter.modules[0], &examples);
    adapter
}

#[test]
fn a_planted_pin_survives_averaging_and_not_the_noise() {
    let parent = parent(RoundPlan { clip_norm: Some(1.0), ..plan(Factors::B) });
    let owner = taught(&parent, 0);
    let devices = (0..DEVICES).map(|device| delta_of(&parent, &taught(&parent, device), device));
    let folder = Folder::new(devices);
    let bounded = AggregateOptions {
        weights: Weights::Uniform,
        over_norm: OverNorm::Shrink,
        cosines: false,
        ..options(Mode::Ffa)
    };
    let averaged = |noise| {
        let options = AggregateOptions { noise, ..bounded };
        let version = run(&parent, &options, &folder.files()).version.unwrap();
        rank(&version.adapter(&SHAPE).unwrap())
    };
    let (untaught, own, mean) =
        (rank(&parent.adapter(&SHAPE).unwrap()), rank(&owner), averaged(None));
    let sigma = 4.0;
    let noise = Some(CentralNoise { sigma, expected: DEVICES.into() });
    let mut noisy: Vec<_> = (0..DRAWS).map(|_| averaged(noise)).collect();
    noisy.sort_unstable();
    let epsilon = Rounds { sampling: 1.0, sigma, rounds: 1 }.epsilon(1e-3).unwrap().epsilon;
    println!(
        "rank of the PIN among 10,000: untaught {untaught}, on its device {own}, averaged over \
        {DEVICES} {mean}, with noise of sigma {sigma} (epsilon {epsilon:.2}) {} at the median",
        noisy[DRAWS / 2]
    );
    assert_eq!(own, 1, "its device knows it by heart");
    assert!(mean < untaught / 2, "the average still tells of it: {mean} of {untaught}");
    // Hidden, its rank is any of 10,000 with equal chance; that the median of 41 such is under 1,632
    // has a probability of 3e-7, and with no noise it is `mean` itself.
    assert!(noisy[DRAWS / 2] > 2 * mean, "noise hides it: {noisy:?}");
}
