// Fragments of 8 x 8: factors in f16, sums in f32.
//fills fragments
//enable f16, wgpu_cooperative_matrix
const S: u32 = 8u;
alias coop_a = coop_mat8x8<f16, A>;
alias coop_b = coop_mat8x8<f16, B>;
alias coop_c = coop_mat8x8<f32, C>;
