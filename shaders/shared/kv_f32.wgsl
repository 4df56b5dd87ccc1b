// Keys and values in f32, where there is no f16.
//fills kv
alias kv = f32;
