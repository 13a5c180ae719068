//! How far a rewrap came.

use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::domain::system_key::NewestKeys;

/// How far it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub state: RewrapState,
    /// How many rows it has looked at in this pass.
    pub done: u64,
    /// How many rows there were when the pass began.
    pub total: u64,
    /// How many rows it has renewed.
    pub renewed: u64,
}

/// What a rewrap is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "name", content = "reason")]
pub enum RewrapState {
    /// None was begun since the start.
    Idle,
    /// It goes on.
    Running,
    /// All rows are under the newest keys.
    Finished,
    /// It was given up. Beginning again goes on where it stopped.
    Failed(String),
}

/// The one rewrap that there can be, and the newest keys as far as they are known.
pub struct Rewrapping {
    progress: Mutex<Progress>,
    /// Those that are in the log, or were there at the start. Held while new ones are written down.
    pub known: tokio::sync::Mutex<Option<NewestKeys>>,
}

impl Default for Rewrapping {
    fn default() -> Self {
        let progress = Progress { state: RewrapState::Idle, done: 0, total: 0, renewed: 0 };
        Self { progress: Mutex::new(progress), known: Default::default() }
    }
}

impl Rewrapping {
    /// Where it stands, to be changed.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
