//! `y = x Wᵀ` for few rows of x on cooperative matrices, where the device has them.

use epiphyte::DType;
use epiphyte::kernels::matvec::{Epilogue, MAX_COLS};
use epiphyte::kernels::matvec_coop::Tiling;
use proptest::prelude::*;

use super::matvec::{Case, Style, cases, check, check_expand, check_shrink};
use super::{for_all, matrices};

/// Every way to share the work, rows enough for one pass.
fn coop_cases() -> impl Strategy<Value = Case> {
    let tiling = prop_oneof![
        Just((4, 1, 4)),
        Just((4, 1, 2)),
        Just((4, 2, 8)),
        Just((2, 2, 4)),
        Just((8, 8, 16)),
        Just((8, 8, 8)),
        Just((4, 4, 8))
    ];
    (cases(), tiling, any::<bool>()).prop_map(|(case, (subgroups, split, step), scalar)| Case {
        m: case.m.min(MAX_COLS as usize),
        style: Style::Coop(Tiling { cols: MAX_COLS, subgroups, split, step }, scalar),
        ..case
    })
}

/// More rows than one pass over W serves, and fewer.
fn many_rows() -> impl Strategy<Value = Case> {
    let cols = prop_oneof![Just(MAX_COLS), Just(16), Just(32)];
    (coop_cases(), cols, 1usize..70).prop_map(|(case, cols, m)| {
        let Style::Coop(tiling, scalar) = case.style else { return case };
        // The tile has room for so many lines.
        let step = if cols > 16 { tiling.step.min(8) } else { tiling.step };
        let tiling = Tiling { cols, step, ..tiling };
        Case { m, style: Style::Coop(tiling, scalar), ..case }
    })
}

#[test]
fn matvec_coop_is_the_product_in_every_format() {
    if !matrices("all of it") {
        return;
    }
    for dtype in DType::ALL {
        for_all(2, coop_cases(), |gpu, case| check(gpu, dtype, case));
    }
}

#[test]
fn matvec_coop_makes_every_epilogue_with_and_without_the_norm() {
    if !matrices("all of it") {
        return;
    }
    for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu, Epilogue::GeGlu] {
        for norm in [false, true] {
            for_all(2, coop_cases(), |gpu, case| {
                check(gpu, DType::Q4_0, &Case { epilogue, norm, ..case.clone() })
            });
        }
    }
}

#[test]
fn matvec_coop_serves_many_rows_a_pass() {
    if !matrices("all of it") {
        return;
    }
    for dtype in [DType::Q4_0, DType::Q4_1, DType::Q8_0, DType::Q6_K, DType::F16] {
        for_all(6, many_rows(), |gpu, case| check(gpu, dtype, case));
    }
}

#[test]
fn matvec_coop_makes_u_beside_the_product() {
    if !matrices("all of it") {
        return;
    }
    for norm in [false, true] {
        for_all(4, coop_cases(), |gpu, case| {
            check_shrink(gpu, &Case { norm, epilogue: Epilogue::Store, ..case.clone() })
        });
    }
}

#[test]
fn matvec_coop_adds_what_u_expands_to() {
    if !matrices("all of it") {
        return;
    }
    for epilogue in [Epilogue::Store, Epilogue::Add] {
        for_all(4, (coop_cases(), (1usize..4, 0usize..40)), |gpu, (case, lora)| {
            check_expand(gpu, &Case { epilogue, norm: false, ..case.clone() }, *lora)
        });
    }
}
