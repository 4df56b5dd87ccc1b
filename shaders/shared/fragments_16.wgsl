// Fragments of 16 x 16: factors in f16, sums in f32.
//fills fragments
//enable f16, wgpu_cooperative_matrix
const S: u32 = 16u;
alias coop_a = coop_mat16x16<f16, A>;
alias coop_b = coop_mat16x16<f16, B>;
alias coop_c = coop_mat16x16<f32, C>;
