//! Every kernel in every variant parses and validates; bindings are numbered 0..n with the access
//! that the host declares, structs lie in memory as in Rust, and workgroup memory is within WebGPU's
//! default.

use std::path::Path;

use epiphyte::DType;
use epiphyte::base::layout::Activation;
use epiphyte::gpu::params::{Field, Layout};
use epiphyte::gpu::{Access, Caps, KernelSpec};
use epiphyte::kernels::attention::Leaves;
use epiphyte::kernels::lora::{self, Directory};
use epiphyte::kernels::matmul::{self, Tile};
use epiphyte::kernels::matmul_backward::Way;
use epiphyte::kernels::matvec::{COLS, Epilogue, Lora, SOFTWARE, Variant};
use epiphyte::kernels::matvec_coop::{self, Shape};
use epiphyte::kernels::rope::HeadInput;
use epiphyte::kernels::{
    adamw, attention_backward, attention_train, cross_entropy, gather_rows, grad_norm,
    heads_backward,
};
use epiphyte::kernels::{
    attention, bandwidth, embedding, matmul_backward, matmul_dense, matvec, proximal, rms_norm,
};
use epiphyte::kernels::{
    rms_norm_backward, rope, rope_train, row_exponents, sample, sample_mask, sgd, swiglu,
    swiglu_backward,
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

const INPUTS: [HeadInput; 3] = [
    HeadInput { bias: true, norm: false },
    HeadInput { bias: false, norm: true },
    HeadInput { bias: true, norm: true },
];

fn linear_specs(caps: &Caps, dtype: DType) -> Vec<KernelSpec> {
    let mut specs = vec![embedding::spec(dtype)];
    let tiling = matvec::tiling(caps, 4096, 18);
    for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu, Epilogue::GeGlu] {
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
    for (&tile, fours) in Tile::all(caps).iter().flat_map(|tile| [(tile, false), (tile, true)]) {
        specs.push(matmul_backward::spec(caps, dtype, Way { tile, fours }));
    }
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
            [Epilogue::Store, Epilogue::Add, Epilogue::SwiGlu, Epilogue::GeGlu]
                .map(|e| spec(tiling, true, e, None)),
        );
    }
    specs
}

fn other_specs(caps: &Caps) -> Vec<KernelSpec> {
    let mut specs = vec![rms_norm::spec(caps, false), bandwidth::spec(), row_exponents::spec()];
    specs.push(rms_norm::spec(caps, true));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        specs.extend([None, Some(DIRECTORY)].map(|lora| swiglu::spec(caps, activation, lora)));
        specs.push(swiglu_backward::spec(activation));
    }
    specs.extend([
        lora::shrink_spec(caps, DIRECTORY),
        lora::expand_spec(DIRECTORY),
        lora::embedding_spec(DIRECTORY),
    ]);
    specs.extend([
        sample::adjust_spec(),
        sample_mask::spec(),
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
        specs.push(attention::prefill_spec(caps, heads));
        for input in INPUTS {
            specs.push(rope::beside_spec(head_dim, 32, caps.f16, input));
        }
    }
    specs
}

fn training_specs(caps: &Caps) -> Vec<KernelSpec> {
    let mut specs = vec![cross_entropy::spec(), gather_rows::spec()];
    specs.extend([false, true].map(|add| rms_norm_backward::spec(caps, add)));
    specs.extend([
        grad_norm::partial_spec(),
        grad_norm::final_spec(),
        adamw::spec(),
        proximal::spec(),
        sgd::spec(false),
        sgd::spec(true),
    ]);
    for head_dim in [64, 80, 128, 256] {
        specs.extend([rope_train::spec(head_dim), attention_train::spec(head_dim)]);
        specs.extend(INPUTS.map(|input| rope_train::beside_spec(head_dim, input)));
        specs.extend([false, true].map(|bias| heads_backward::spec(head_dim, bias)));
        specs.push(attention_backward::delta_spec(head_dim));
        specs.extend([
            attention_backward::dq_spec(head_dim),
            attention_backward::dkv_spec(head_dim),
        ]);
    }
    specs
}

/// Gives the text that it has checked.
fn check(spec: &KernelSpec, immediates: bool) -> String {
    let KernelSpec { name, consts, fills, .. } = spec;
    let text = spec.text(immediates).unwrap_or_else(|e| panic!("{name} {fills:?}: {e}"));
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("{name} {consts:?}: {}", e.emit_to_string(&text)));
    let capabilities = Capabilities::all();
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name} {consts:?}: {}", e.emit_to_string(&text)));
    for (of, layout) in [("Params", &spec.params), ("Sampler", &sample::Sampler::LAYOUT)] {
        let ty = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(of));
        if let Some((_, ty)) = ty {
            assert_eq!(differs(&module, ty, layout), None, "{name}: {of}");
        }
    }
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
            naga::AddressSpace::WorkGroup => {
                workgroup_bytes += module.types[variable.ty].inner.size(module.to_ctx());
            }
            _ => {}
        }
    }
    // GPUs with cooperative matrices have 32 KiB at least.
    let matrices = text.contains("enable wgpu_cooperative_matrix;");
    let most = if matrices { 32 << 10 } else { 16 << 10 };
    assert!(workgroup_bytes <= most, "{name}: {workgroup_bytes} bytes of workgroup memory");
    let declared: Vec<_> = spec.bindings.iter().copied().map(Some).collect();
    assert_eq!(accesses, declared, "{name}: bindings");
    assert!(spec.bindings.len() <= 8, "{name}: more than 8 storage buffers");
    text
}

/// In what a struct's members in the shader differ from those in Rust: names, types, offsets, size.
fn differs(module: &naga::Module, ty: &naga::Type, layout: &Layout) -> Option<String> {
    let naga::TypeInner::Struct { members, span } = &ty.inner else {
        return Some("no struct".into());
    };
    let type_of = |member: &naga::StructMember| match module.types[member.ty].inner {
        naga::TypeInner::Scalar(naga::Scalar::U32) => "u32",
        naga::TypeInner::Scalar(naga::Scalar::F32) => "f32",
        naga::TypeInner::Vector { size: naga::VectorSize::Quad, scalar: naga::Scalar::U32 } => {
            "vec4<u32>"
        }
        _ => "another type",
    };
    let there: Vec<_> =
        members.iter().map(|m| (m.name.as_deref(), type_of(m), m.offset as usize)).collect();
    let fields = layout.fields.iter();
    let here: Vec<_> =
        fields.filter_map(|field| Some((Some(field.name), field.wgsl?, field.offset))).collect();
    (there != here || *span != layout.bytes)
        .then(|| format!("{there:?}, {span} bytes, and in Rust {here:?}, {} bytes", layout.bytes))
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

fn all_specs(caps: &Caps) -> Vec<KernelSpec> {
    let linears = DType::ALL.into_iter().flat_map(|dtype| linear_specs(caps, dtype));
    linears.chain(other_specs(caps)).chain(training_specs(caps)).collect()
}

/// One file of `shaders/` without the `.wgsl`, and its text.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let (mut folders, mut files) = (vec![root.clone()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let stem = entry.path().with_extension("");
            let stem = stem.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            files.push((stem, std::fs::read_to_string(entry.path()).unwrap()));
        }
    }
    files
}

#[test]
fn every_kernel_validates_on_every_tier_and_no_file_is_left_over() {
    let mut unused = files();
    let mut check_all = |caps: &Caps| {
        for spec in all_specs(caps) {
            let text = check(&spec, caps.immediates);
            unused.retain(|(_, file)| !text.contains(file.as_str()));
        }
    };
    check_all(&CAPS);
    check_all(&Caps { subgroup_size: Some(4), software: true, ..CAPS });
    check_all(&Caps { subgroup_size: None, software: true, ..CAPS });
    check_all(&Caps { subgroup_size: None, f16: false, immediates: false, ..CAPS });
    for side in [8, 16] {
        check_all(&Caps { cooperative_matrix: Some(side), scalar_fragments: side == 8, ..CAPS });
    }
    assert!(unused.is_empty(), "{:?}", unused.iter().map(|(stem, _)| stem).collect::<Vec<_>>());
}

/// What the joiner says of `swiglu` without adapters, once `change`d.
fn refused(change: impl FnOnce(&mut KernelSpec)) -> String {
    let mut spec = swiglu::spec(&CAPS, Activation::Silu, None);
    assert!(spec.text(true).is_ok());
    change(&mut spec);
    spec.text(true).unwrap_err().to_string()
}

#[test]
fn the_joiner_refuses_what_does_not_fit() {
    let said = refused(|spec| spec.name = "swigloo");
    assert!(said.contains("there is no shaders/swigloo.wgsl"), "{said}");
    let said = refused(|spec| spec.fills[0] = "lora/no_too");
    assert!(said.contains("there is no shaders/lora/no_too.wgsl"), "{said}");
    let said = refused(|spec| spec.consts.clear());
    assert!(said.contains("constant WG is given 0 times"), "{said}");
    let said = refused(|spec| spec.consts.push(("WG", 64)));
    assert!(said.contains("constant WG is given 2 times"), "{said}");
    let said = refused(|spec| spec.consts.push(("WAGE", 64)));
    assert!(said.contains("constant WAGE is given, but no file declares it"), "{said}");
    let said = refused(|spec| spec.fills.truncate(1));
    assert!(said.contains("one file must fill `shrink_tile`, not []"), "{said}");
    let said = refused(|spec| spec.fills.push("lora/shrink_tile"));
    assert!(said.contains("[lora/no_tile, lora/shrink_tile]"), "{said}");
    let said = refused(|spec| spec.fills.push("shared/quads"));
    assert!(said.contains("shared/quads fills no interface that is needed"), "{said}");
}

#[test]
fn a_struct_that_lies_otherwise_in_memory_is_seen() {
    let text = "struct Params { a: u32, b: vec4<u32> } var<immediate> p: Params;";
    let module = naga::front::wgsl::parse_str(text).unwrap();
    let (_, ty) = module.types.iter().find(|(_, ty)| ty.name.is_some()).unwrap();
    let field = |name, wgsl, offset| Field { name, wgsl: Some(wgsl), offset };
    let fields = |b| [field("a", "u32", 0), b];
    let differs = |b: Field, bytes| {
        let fields = Vec::leak(fields(b).to_vec());
        differs(&module, ty, &Layout { fields, bytes }).is_some()
    };
    assert!(!differs(field("b", "vec4<u32>", 16), 32));
    assert!(differs(field("b", "vec4<u32>", 4), 32));
    assert!(differs(field("b", "u32", 16), 32));
    assert!(differs(field("c", "vec4<u32>", 16), 32));
    assert!(differs(field("b", "vec4<u32>", 16), 20));
}
