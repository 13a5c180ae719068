//! A process that is killed before each of its steps in turn: `tests/faults/last_step.c`, preloaded.

use std::path::PathBuf;

use crate::preloaded;
use crate::scratch::Scratch;

/// The compiled library.
pub struct LastStep {
    _scratch: Scratch,
    library: PathBuf,
    of: String,
}

impl LastStep {
    /// Steps are what is done to names that contain this.
    pub fn of(name: &str) -> Self {
        let scratch = Scratch::new();
        let library = preloaded::compile("last_step", scratch.path());
        Self { _scratch: scratch, library, of: name.to_owned() }
    }

    /// What a process needs in its environment to be killed instead of doing this step, counted from 1. No mask takes
    /// anything from the modes of what it makes.
    pub fn environment(&self, step: usize) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap().to_owned()),
            ("LAST_STEP_OF", self.of.clone()),
            ("LAST_STEP", step.to_string()),
            ("LAST_STEP_UMASK", "0".to_owned()),
        ]
    }
}
