//! Memory is added up before it is taken, and what is found is what is taken.

use epiphyte_bindings::{
    EpiphyteError, MemoryClass, MemoryPlan, MemoryPlanOptions, TrainData, TrainOptions, memory_plan,
};
use pollster::block_on;

use super::{engine, tiny};

fn plan(options: MemoryPlanOptions) -> Result<MemoryPlan, EpiphyteError> {
    block_on(memory_plan(tiny(), options))
}

#[test]
fn an_engine_takes_what_was_planned() {
    let planned =
        plan(MemoryPlanOptions { kv_tokens: Some(0), ..MemoryPlanOptions::default() }).unwrap();
    assert_eq!(planned.total_bytes, engine().device_bytes().unwrap());
    assert_eq!(planned.total_bytes, planned.classes.iter().map(|class| class.bytes).sum::<i64>());
    assert!(planned.classes.iter().any(|class| class.class == MemoryClass::Weights));
    assert_eq!(planned.training, None);
    let full = plan(MemoryPlanOptions { kv_tokens: Some(2048), ..Default::default() }).unwrap();
    assert!(full.total_bytes > planned.total_bytes);
}

#[test]
fn a_training_run_is_fitted_to_a_budget() {
    let nothing = TrainData::Examples { examples: Vec::new() };
    let training = Some(TrainOptions::new("/tmp/none", nothing));
    let options = MemoryPlanOptions { training, ..MemoryPlanOptions::default() };
    let free = plan(options.clone()).unwrap();
    assert!(free.training.unwrap().trainable_parameters > 0);
    let budget = free.total_bytes - 4096;
    let fitted = plan(MemoryPlanOptions { memory_budget_bytes: Some(budget), ..options.clone() });
    assert!(fitted.unwrap().total_bytes <= budget);
    for options in [options, MemoryPlanOptions::default()] {
        let error = plan(MemoryPlanOptions { memory_budget_bytes: Some(1000), ..options }).err();
        match error {
            Some(error @ EpiphyteError::OverBudget { .. }) => assert!(!error.hint().is_empty()),
            other => panic!("{other:?}"),
        }
    }
    let error = plan(MemoryPlanOptions { context: Some(-1), ..MemoryPlanOptions::default() });
    assert!(matches!(error, Err(EpiphyteError::InvalidArgument { .. })), "{error:?}");
}
