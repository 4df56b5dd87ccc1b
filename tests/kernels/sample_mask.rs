//! Tokens that a grammar leaves.

use epiphyte::kernels::sample_mask::{mask_words, record, spec};

use super::{Near, Output, Random, for_all, seed, submit};

#[test]
fn sample_mask_leaves_what_may_come_and_puts_the_rest_below_it() {
    for_all(12, (1usize..3000, 1usize..5, seed()), |gpu, &(vocab, rows, seed)| {
        let mut random = Random(seed);
        let words = mask_words(vocab as u32) as usize;
        let masks: Vec<u32> = (0..words * rows).map(|_| random.bits() as u32).collect();
        let mut logits = random.vec(vocab * rows, 10.0);
        // What a bias may have made of one.
        logits[vocab / 2] = -3e38;
        let logits = Output::holding(gpu, logits, false)?;
        let op = gpu.op(&spec(), &[&gpu.upload("masks", &masks)?, &logits.tensor])?;
        submit(gpu, |commands| record(commands, &op, vocab as u32, rows as u32))?;
        let near = |at: usize| {
            let may = masks[at / vocab * words + at % vocab / 32] >> (at % vocab % 32) & 1 == 1;
            let (value, bound) = match (may, f64::from(logits.before[at])) {
                (true, before) if before > -1e30 => (before, 0.0),
                (true, _) => (-1e30, 1e23),
                (false, _) => (-1e36, 1e29),
            };
            Some(Near { value, bound })
        };
        logits.check(gpu, &(0..vocab * rows).map(near).collect::<Vec<_>>())
    });
}
