//! Every kernel in every variant parses and validates; bindings are numbered 0..n with the access
//! that the host declares, `Params` has the size of its Rust mirror, and workgroup memory is within
//! WebGPU's default.

use epiphyte::DType;
use epiphyte::gpu::{Access, Caps, KernelSpec};
use epiphyte::kernels::attention::Leaves;
use epiphyte::kernels::lora::{self, Directory};
use epiphyte::kernels::matmul::{self, Tile};
use epiphyte::kernels::matvec::{COLS, Epilogue, Lora, SOFTWARE, Variant};
use epiphyte::kernels::matvec_coop::{self, Shape};
use epiphyte::kernels::{
    adamw, attention_backward, attention_train, cross_entropy, gather_rows, grad_norm,
};
use epiphyte::kernels::{
    attention, bandwidth, embedding, matmul_backward, matmul_dense, matvec, rms_norm,
};
use epiphyte::kernels::{
    rms_norm_backward, rope, rope_train, row_exponents, sample, sgd, swiglu, swiglu_backward,
};
use naga::valid::{Capabilities, ValidationFlags, Validator};

const CAPS: Caps = Caps {
    subgroup_size: Some(32),
    f16: true,
    cooperative_matrix: None,
    scalar_fragments: false,
    block_bytes: 0,
    immediates: true,
    software: false,
    max_binding_bytes: 128 << 20,
};

const DIRECTORY: Directory = Directory { rows: 64, sets: 4, sites: 10 };

fn linear_specs(caps: &Caps, dtype: DType) -> Vec<KernelSpec> {
    let mut specs = vec![embedding::spec(dtype)];
    let tiling = matvec::tiling(caps, 4096, 18);
    for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu] {
        let variant = |cols| Variant { tiling, cols, norm: cols < 4, epilogue, lora: None };
        specs.extend([1, 2, COLS].map(|cols| matvec::spec(caps, dtype, variant(cols))));
    }
    for (lora, epilogue) in
        [(Lora::Shrink(DIRECTORY), Epilogue::Store), (Lora::Expand(DIRECTORY), Epilogue::Add)]
    {
        let variant = |cols| Variant { tiling, cols, norm: cols < 4, epilogue, lora: Some(lora) };
        specs.extend([1, COLS].map(|cols| matvec::spec(caps, dtype, variant(cols))));
    }
    let split = matvec::tiling(caps, 64, 256);
    let norm =
        Variant { tiling: split, cols: 4, norm: true, epilogue: Epilogue::Store, lora: None };
    specs.push(matvec::spec(caps, dtype, norm));
    for (norm, epilogue) in [(false, Epilogue::Add), (true, Epilogue::Store)] {
        let software = Variant { tiling: SOFTWARE, cols: COLS, norm, epilogue, lora: None };
        specs.push(matvec::spec(caps, dtype, software));
    }
    for epilogue in [Epilogue::Store, Epilogue::Add] {
        specs.extend(Tile::all(caps).iter().map(|tile| matmul::spec(caps, dtype, epilogue, *tile)));
    }
    specs.push(matmul_backward::spec(caps, dtype));
    specs.extend(Shape::of(caps).iter().flat_map(|shape| coop_specs(*shape, dtype)));
    specs
}

fn coop_specs(shape: Shape, dtype: DType) -> Vec<KernelSpec> {
    let spec = |tiling, guard, epilogue, lora| {
        let norm = epilogue != Epilogue::Add;
        matvec_coop::spec(
            dtype,
            matvec_coop::Variant { shape, tiling, guard, norm, epilogue, lora },
        )
    };
    let mut specs = vec![];
    for tiling in shape.tilings() {
        specs.push(spec(tiling, false, Epilogue::Store, Some(Lora::Shrink(DIRECTORY))));
        specs.push(spec(tiling, true, Epilogue::Add, Some(Lora::Expand(DIRECTORY))));
        specs.extend(
            [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu].map(|e| spec(tiling, true, e, None)),
        );
    }
    specs
}

fn other_specs(caps: &Caps) -> Vec<KernelSpec> {
    let mut specs = vec![rms_norm::spec(caps), bandwidth::spec(), row_exponents::spec()];
    specs.extend([None, Some(DIRECTORY)].map(|lora| swiglu::spec(caps, lora)));
    specs.extend([
        lora::shrink_spec(caps, DIRECTORY),
        lora::expand_spec(DIRECTORY),
        lora::embedding_spec(DIRECTORY),
    ]);
    specs.extend([
        sample::adjust_spec(),
        sample::threshold_spec(),
        sample::partial_spec(),
        sample::final_spec(),
    ]);
    specs.extend(matmul_dense::Tiling::ALL.map(matmul_dense::Tiling::spec));
    for (head_dim, neox) in [(64, true), (128, false), (256, true)] {
        let heads =
            attention::Heads { heads: 9, kv_heads: 3, head_dim, page_len: 32, kv_f16: caps.f16 };
        for lora in [None, Some(DIRECTORY)] {
            specs.push(rope::spec(head_dim, 32, neox, caps.f16, lora));
            specs.push(attention::reduce_spec(caps, head_dim, lora));
        }
        let leaves = [Leaves::Whole, Leaves::WholeAndU(DIRECTORY), Leaves::Split];
        specs.extend(leaves.map(|leaves| attention::spec(caps, heads, leaves)));
        specs.push(attention::prefill_spec(heads));
    }
    specs
}

fn training_specs(caps: &Caps) -> Vec<KernelSpec> {
    let mut specs = vec![swiglu_backward::spec(), cross_entropy::spec(), gather_rows::spec()];
    specs.extend([false, true].map(|add| rms_norm_backward::spec(caps, add)));
    specs.extend([
        grad_norm::partial_spec(),
        grad_norm::final_spec(),
        adamw::spec(),
        sgd::spec(false),
        sgd::spec(true),
    ]);
    for head_dim in [64, 80, 128, 256] {
        specs.extend([rope_train::spec(head_dim), attention_train::spec(head_dim)]);
        specs.push(attention_backward::delta_spec(head_dim));
        specs.extend([
            attention_backward::dq_spec(head_dim),
            attention_backward::dkv_spec(head_dim),
        ]);
    }
    specs
}

fn check(spec: &KernelSpec, immediates: bool) {
    let text = spec.source.text(immediates);
    let name = spec.source.name;
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("{name} {:?}: {}", spec.source.consts, e.emit_to_string(&text)));
    let capabilities = Capabilities::all();
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name} {:?}: {}", spec.source.consts, e.emit_to_string(&text)));
    translate(name, &module, &info);
    let mut accesses = vec![None; spec.bindings.len()];
    let mut workgroup_bytes = 0;
    for (_, variable) in module.global_variables.iter() {
        match variable.space {
            naga::AddressSpace::Storage { access } => {
                let binding =
                    variable.binding.expect("a storage variable is bound").binding as usize;
                let write = access.contains(naga::StorageAccess::STORE);
                accesses[binding] = Some(if write { Access::Write } else { Access::Read });
            }
            naga::AddressSpace::Immediate | naga::AddressSpace::Uniform => {
                let size = module.types[variable.ty].inner.size(module.to_ctx());
                assert_eq!(size, spec.params_bytes, "{name}: Params");
            }
            naga::AddressSpace::WorkGroup => {
                workgroup_bytes += module.types[variable.ty].inner.size(module.to_ctx());
            }
            _ => {}
        }
    }
    // GPUs with cooperative matrices have 32 KiB at least.
    let most = if spec.source.cooperative_matrix { 32 << 10 } else { 16 << 10 };
    assert!(workgroup_bytes <= most, "{name}: {workgroup_bytes} bytes of workgroup memory");
    let declared: Vec<_> = spec.bindings.iter().copied().map(Some).collect();
    assert_eq!(accesses, declared, "{name}: bindings");
    assert!(spec.bindings.len() <= 8, "{name}: more than 8 storage buffers");
}

/// What the Vulkan and Metal backends will be given.
fn translate(name: &str, module: &naga::Module, info: &naga::valid::ModuleInfo) {
    let spirv = naga::back::spv::Options { lang_version: (1, 6), ..Default::default() };
    naga::back::spv::write_vec(module, info, &spirv, None)
        .unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
    let metal = naga::back::msl::Options {
        lang_version: (3, 0),
        fake_missing_bindings: true,
        ..Default::default()
    };
    naga::back::msl::write_string(
        module,
        info,
        &metal,
        &naga::back::msl::PipelineOptions::default(),
    )
    .unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
}

fn check_all(caps: &Caps) {
    for dtype in DType::ALL {
        for spec in linear_specs(caps, dtype) {
            check(&spec, caps.immediates);
        }
    }
    for spec in other_specs(caps).into_iter().chain(training_specs(caps)) {
        check(&spec, caps.immediates);
    }
}

#[test]
fn every_kernel_validates_on_every_tier() {
    check_all(&CAPS);
    check_all(&Caps { subgroup_size: Some(4), software: true, ..CAPS });
    check_all(&Caps { subgroup_size: None, f16: false, immediates: false, ..CAPS });
    for side in [8, 16] {
        check_all(&Caps { cooperative_matrix: Some(side), scalar_fragments: side == 8, ..CAPS });
    }
}
