//! What a module may change (`hsm.folders`), held against what no module is to see or change: as it is written, and as it is,
//! which links may make another place.

use std::path::{Path, PathBuf};

use super::Config;
use crate::files;

impl Config {
    /// As it is written: nothing is looked at. The front may open whatever is beneath its database's folder, and a custodian
    /// whatever is beneath `hsm.folders`.
    ///
    /// # Errors
    /// One line that says what to mend.
    pub(super) fn validate_folders(&self) -> Result<(), String> {
        self.hold_apart(&[], &Path::to_owned)
    }

    /// As it is: where each path leads to, of which a part may not be there yet. `own`: this configuration's file.
    ///
    /// # Errors
    /// One line that says what to mend.
    pub(super) fn look_at_folders(&self, own: &Path) -> Result<(), String> {
        self.hold_apart(&[own], &files::real)
    }

    fn hold_apart(&self, own: &[&Path], place: &dyn Fn(&Path) -> PathBuf) -> Result<(), String> {
        let store = place(self.store.folder());
        let configured = own.iter().copied().chain(self.files_of_front()).chain(self.hsm.pin_files());
        let hidden: Vec<_> = configured.map(|path| (path, place(path))).collect();
        for token in self.hsm.tokens() {
            let folders: Vec<_> = token.folders.iter().map(|path| (path.as_path(), place(path))).collect();
            let others = [&token.pin_file, &token.module].map(|path| (path.as_path(), place(path)));
            for (path, real) in folders.iter().chain(&others) {
                if real.starts_with(&store) {
                    let own = self.store.folder().join("store");
                    return Err(format!(
                        "store.path: the front could open {} there; give the database a folder of its own, such as {}",
                        led(path, real),
                        own.display()
                    ));
                }
            }
            for (path, real) in &folders {
                if store.starts_with(real) {
                    return Err(format!(
                        "hsm.folders: the module could change the database, which is beneath {}",
                        led(path, real)
                    ));
                }
                if let Some((secret, at)) =
                    hidden.iter().find(|(_, at)| at.starts_with(real) || real.starts_with(at))
                {
                    return Err(format!(
                        "hsm.folders: by {} the module could read and change {}, which is not for it; name only what it needs",
                        led(path, real),
                        led(secret, at)
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A path, and where it leads to.
fn led(path: &Path, real: &Path) -> String {
    match path == real {
        true => path.display().to_string(),
        false => format!("{} ({})", path.display(), real.display()),
    }
}
