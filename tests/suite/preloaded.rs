//! Libraries that stand before the C library's in a child process: `tests/faults/NAME.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles one into this folder.
pub fn compile(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/faults/{name}.c"));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
    assert!(compiler.status().unwrap().success());
    library
}
