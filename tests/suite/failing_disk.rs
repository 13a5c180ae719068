//! A disk that fails when told to, under a daemon: `tests/faults/failing_disk.c`, preloaded.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::preloaded;
use crate::scratch::Scratch;

/// The longest word that the library reads.
const WORD_BYTES: usize = 31;

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

    /// How it fails from now on.
    pub fn set(&self, mode: &str) {
        set(&self.scratch.path().join("disk"), mode);
    }
}

/// Tells a disk by its control file how it fails from now on: written at once, so that it never reads half a word, and in
/// place, because it has the file open.
pub fn set(control: &Path, mode: &str) {
    let mut word = [0; WORD_BYTES];
    word[..mode.len()].copy_from_slice(mode.as_bytes());
    let file = fs::File::options().write(true).create(true).truncate(false).open(control).unwrap();
    file.write_all_at(&word, 0).unwrap();
}
