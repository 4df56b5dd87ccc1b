//! What a package ships beside the program: completions for shells, and man pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, output};
use epiphyte::error::{Error, Result};

/// Print completions for a shell, to be sourced or saved where it looks for them
#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Print the man page, or write one for every command
#[derive(Args)]
pub(super) struct ManArgs {
    /// Folder to write the pages to, such as ~/.local/share/man/man1; it is made
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "epiphyte", &mut text);
    output::text(&String::from_utf8_lossy(&text))
}

pub(super) fn man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        return clap_mangen::generate_to(command, dir).map_err(|e| Error::io(dir, e));
    }
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(|e| Error::io("the man page", e))?;
    output::text(&String::from_utf8_lossy(&page))
}
