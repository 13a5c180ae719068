//! What is done to the database's files before SQLite sees them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::OpenError;
use super::schema::APPLICATION_ID;

/// What every SQLite database begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Where `PRAGMA application_id` is kept in the header.
const APPLICATION_ID_AT: usize = 68;
/// How long a start waits for the database's lock.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(1);
/// The header's length.
const HEADER_LEN: usize = 100;

/// Keeps every other process away from the database until it is dropped.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child that was forked and has not called exec yet.
        // If this fails, the end of the process unlocks.
        let _ = self.0.unlock();
    }
}

/// Makes the files ready and returns the lock that keeps every other process away from them.
///
/// The lock comes first: closing any descriptor of a database drops the locks that SQLite holds on
/// it in this process, so nobody may look into one that is in use.
pub(super) fn prepare(path: &Path) -> Result<Lock, OpenError> {
    let lock = lock(path)?;
    let database = open(path).map_err(|error| refusal("open", path, &error))?;
    if identify(&database).map_err(|error| refusal("read", path, &error))? == Found::Foreign {
        return Err(OpenError(format!("{} is no hsm-authd database; nothing was changed", path.display())));
    }
    // A database whose name is lost in a power cut takes its commits with it.
    sync_folder(path)?;
    let wal = beside(path, "-wal");
    settle(&wal).map_err(|error| refusal("settle", &wal, &error))?;
    Ok(lock)
}

/// Makes the names in a file's folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), OpenError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(|error| refusal("sync", folder, &error))
}

/// The file next to the database whose name ends in `suffix`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn refusal(what: &str, path: &Path, error: &io::Error) -> OpenError {
    OpenError(format!("cannot {what} {}: {error}", path.display()))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A process that was killed closes its descriptors one after the other: who found one of its locks free has not long to
/// wait for the next.
pub(super) fn lock(path: &Path) -> Result<Lock, OpenError> {
    let lock_path = beside(path, "-lock");
    let file = open(&lock_path).map_err(|error| refusal("open", &lock_path, &error))?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::Error(error)) => return Err(refusal("lock", &lock_path, &error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(OpenError(format!("another process uses {}; stop it first", path.display())));
            }
            // The kernel has no lock that can be waited for with a deadline.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Found {
    Nothing,
    Ours,
    Foreign,
}

/// Reads the header. `application_id` is written before the database first becomes a WAL one, so
/// it is always in the file itself.
fn identify(database: &File) -> io::Result<Found> {
    if database.metadata()?.len() == 0 {
        return Ok(Found::Nothing);
    }
    let mut header = [0u8; HEADER_LEN];
    match database.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Found::Foreign),
        other => other?,
    }
    let ours = header.starts_with(MAGIC)
        && header
            .get(APPLICATION_ID_AT..)
            .is_some_and(|rest| rest.starts_with(&APPLICATION_ID.to_be_bytes()));
    Ok(if ours { Found::Ours } else { Found::Foreign })
}

/// Writes a left-over WAL onto itself and syncs it, so that what a start reads IS durable.
///
/// After a failed fsync Linux keeps the unwritten pages and calls them clean: a restart on the same
/// boot would read a commit that is not on the disk, later fsyncs would pass it over, and a power
/// cut would then tear a hole into the WAL and lose every commit behind it, answered ones too.
/// A crash in here is harmless: every byte is replaced by itself.
fn settle(wal: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(wal) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut buffer = vec![0u8; 1 << 20];
    let mut offset = 0u64;
    loop {
        let length = file.read_at(&mut buffer, offset)?;
        match buffer.get(..length) {
            Some(read) if !read.is_empty() => file.write_all_at(read, offset)?,
            _ => return file.sync_all(),
        }
        offset += length as u64;
    }
}
