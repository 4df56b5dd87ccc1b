// Keys and values in f16.
//fills kv
//enable f16
alias kv = f16;
