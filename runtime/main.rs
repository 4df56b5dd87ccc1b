//! The command line's entry.

fn main() -> std::process::ExitCode {
    epiphyte::cli::run()
}
