//! `hsm-authd restore`: a copy of the database is checked, and put in the place of the database.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Ending;
use crate::backup::{self, Manifest};
use crate::clock::{SystemClock, WatchedClock};
use crate::domain::checkpoint::Note;
use crate::domain::time::{Now, rfc3339};
use crate::hsm::Hsm;
use crate::keys;
use crate::offline::Offline;
use crate::operator;
use crate::service::recovery::{Recovery, Survey};
use crate::store::{self, Store};
use crate::supervisor;

/// Runs `restore` for a configuration file.
///
/// # Errors
/// See [`Ending`]; then what is there is as it was.
pub fn run(path: &Path, from: &Path) -> Ending {
    // The copy may be where root alone can read: it is open before this is the service's user.
    let manifest = Manifest::of(from)?;
    let copied = File::open(from).map_err(|e| format!("{}: {e}", from.display()))?;
    let config = operator::load(path)?;
    let target = &config.store.path;
    let _lock = supervisor::lock(target)?;
    let copy = Copy::begin(target)?;
    copy.fill(from, &copied, &manifest)?;
    let contents = store::contents(&copy.path).map_err(|e| e.to_string())?;
    if let Some(what) = manifest.differs_from(&contents) {
        return Err(Some(format!("{}: {what} is not as its manifest says", from.display())));
    }
    say(format_args!(
        "copy: whole, of {}, {} entries of {}",
        manifest.created, manifest.log.size, manifest.log.origin
    ));

    if let Some(reason) = manifest.keys.missing_from(&keys::described(&config.hsm)?) {
        return Err(Some(format!("{reason}; nothing was changed")));
    }
    let offline = Offline::start(&config.hsm)?;
    let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).map_err(str::to_owned)?);
    let now = clock.now();
    // A copy that was made while the service ran has no end.
    let store = Store::open_to_recover(&copy.path).map_err(|e| e.to_string())?;
    let recovery = Recovery::new(store.clone(), offline.hsm.clone(), clock);
    let survey =
        offline.runtime.block_on(check(&recovery, &store, &offline.hsm, contents.checkpoint.as_deref()))?;
    // Its last connection empties the WAL.
    drop((recovery, store));
    say(format_args!("rows: {}, each as this token sealed it", survey.rows));
    for name in survey.away() {
        say(format_args!("token {name}: is away, and was not asked; it may know of a newer database"));
    }
    if manifest.secrets.resident > 0 {
        let count = manifest.secrets.resident;
        say(format_args!("secrets: {count} are objects in the HSM, and in no copy"));
    }

    let aside = store::install(&copy.path, target, &stamp(&now)).map_err(|e| e.to_string())?;
    if let Some(aside) = aside {
        say(format_args!("what was there is {}", aside.display()));
    }
    say(format_args!("{} is the copy", target.display()));
    match survey.turned_back {
        None => {
            say(format_args!("it has all that the token knows of"));
            say(format_args!("next: {}", operator::start(path)));
        }
        Some(reason) => {
            say(format_args!("{reason}"));
            say(format_args!("next: hsm-authd recover --accept-rollback{}", operator::option(path)));
        }
    }
    Ok(())
}

/// Whether the token has the keys of the copy, and the copy is what it seems to be.
async fn check(
    recovery: &Recovery,
    store: &Store,
    hsm: &Hsm,
    checkpoint: Option<&str>,
) -> Result<Survey, String> {
    let survey = recovery.survey().await.map_err(|e| e.to_string())?;
    if let Some(reason) = &survey.damaged {
        let names = survey.wrong.iter().take(5).map(|name| format!(" ({name})")).collect::<String>();
        return Err(format!("in the copy {reason}{names}; nothing was changed"));
    }
    let Some(text) = checkpoint else { return Ok(survey) };
    let keys = hsm.audit_keys().await.map_err(|e| e.to_string())?;
    let note = Note::parse(text).ok_or("the copy's checkpoint is none; nothing was changed")?;
    let known = note
        .verified(&keys)
        .ok_or("the copy's checkpoint is signed by no audit key of this token; nothing was changed")?;
    let (head, roots) = store.whole_log(vec![known.head.size]).await.map_err(|e| e.to_string())?;
    let is_of_it =
        known.head.origin == head.origin && roots.first().copied().flatten() == Some(known.head.root);
    let is_same_sum = known.head.size != head.size || known.head.sum == head.sum;
    match is_of_it && is_same_sum {
        true => Ok(survey),
        false => Err("the copy's log is not that of its checkpoint; nothing was changed".to_owned()),
    }
}

/// The copy, in the folder of the database and under another name until it is checked.
struct Copy {
    path: PathBuf,
}

impl Copy {
    fn begin(target: &Path) -> Result<Self, String> {
        let path = target.with_added_extension("restoring");
        let copy = Self { path };
        copy.remove();
        Ok(copy)
    }

    fn fill(&self, from: &Path, copied: &File, manifest: &Manifest) -> Result<(), String> {
        let at = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        let options = File::options().write(true).create_new(true).mode(0o600).open(&self.path);
        let mut file = options.map_err(|e| at(&self.path, e))?;
        let (bytes, sha256) = backup::digest(copied, &mut file).map_err(|e| at(from, e))?;
        file.sync_all().map_err(|e| at(&self.path, e))?;
        match bytes == manifest.bytes && sha256 == manifest.sha256 {
            true => Ok(()),
            false => Err(format!(
                "{} is not the file of its manifest: it has {bytes} bytes with SHA-256 {sha256}, and should have {} with {}",
                from.display(),
                manifest.bytes,
                manifest.sha256
            )),
        }
    }

    /// It, and what SQLite and the store put beside it.
    fn remove(&self) {
        for suffix in ["", "-journal", "-wal", "-shm", "-lock"] {
            let mut name = self.path.as_os_str().to_owned();
            name.push(suffix);
            // Mostly it is not there. If it cannot be removed, making it anew says so.
            let _ = fs::remove_file(name);
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Once it is installed, only its lock is left.
        self.remove();
    }
}

/// When, for a file's name: to the millisecond, as one that was interrupted may be done again at once.
fn stamp(now: &Now) -> String {
    let second: String = rfc3339(now.unix_ms).chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{}.{:03}Z", second.trim_end_matches('Z'), now.unix_ms % 1_000)
}

fn say(line: std::fmt::Arguments<'_>) {
    // Nobody may be listening.
    let _ = writeln!(io::stdout(), "{line}");
}
