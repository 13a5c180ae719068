//! A disk that fails when told to, under a daemon: `tests/faults/failing_disk.c`, preloaded.

use std::fs;
use std::path::{Path, PathBuf};

use crate::preloaded;
use crate::scratch::Scratch;

/// The compiled library and its control file.
pub struct FailingDisk {
    scratch: Scratch,
    library: PathBuf,
}

impl FailingDisk {
    /// One that does not fail yet.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let library = preloaded::compile("failing_disk", scratch.path());
        let disk = Self { scratch, library };
        disk.set("none");
        disk
    }

    /// What a process needs in its environment to have this disk.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAILING_DISK_CONTROL", text(&self.scratch.path().join("disk"))),
        ]
    }

    /// How it fails from now on; replaced whole, so that it never reads half a word.
    pub fn set(&self, mode: &str) {
        let control = self.scratch.path().join("disk");
        let new = self.scratch.write("disk.new", mode);
        fs::rename(new, control).unwrap();
    }
}
