//! `autoglm batch run` is another program: the libraries that read other people's files and
//! databases are none of the server's.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

/// It stands beside this one, or else where programs are looked for.
const PROGRAM: &str = "autoglm-batch";

/// Takes this process's place with that program; returns only when there is none.
///
/// # Errors
/// When there is none.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(PROGRAM));
    let ended = replace(Command::new(&program).args(arguments));
    ended.map(|never| match never {}).with_context(|| {
        format!(
            "{PROGRAM} stands neither beside autoglm nor in PATH \
             (cargo build --release --bin {PROGRAM})"
        )
    })
}

#[cfg(unix)]
fn replace(command: &mut Command) -> std::io::Result<Infallible> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec())
}

#[cfg(not(unix))]
fn replace(command: &mut Command) -> std::io::Result<Infallible> {
    std::process::exit(command.status()?.code().unwrap_or(1))
}
