//! Entries of the log that do not stay in it: written to a file beside the database before they are removed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};

use super::{Recovery, RecoveryError};
use crate::service::audit_view::EntryView;
use crate::store::{Damage, EntryAside, RawValue};

/// So many entries are read at once.
const PAGE: u16 = 1_000;

impl Recovery {
    /// Writes what does not stay as JSON lines: an entry as an export has it; one that cannot be read with its columns,
    /// whatever is no number in hexadecimal; and last the newest checkpoint, which signs what the log was. It is durable
    /// when this returns. Killed before, it leaves a `.part` and the log as it is.
    ///
    /// # Errors
    /// It is not there, and nothing may be removed.
    pub(super) async fn set_aside(&self, damage: &Damage) -> Result<PathBuf, RecoveryError> {
        let mut name = OsString::from(self.store.path());
        name.push(format!(".log-set-aside-{}.jsonl", self.now.unix_ms));
        let path = PathBuf::from(name);
        let failed = |error: io::Error| RecoveryError(format!("{}: {error}", path.display()));
        if path.try_exists().map_err(failed)? {
            return Err(RecoveryError(format!("{}: it is there already", path.display())));
        }
        let part = path.with_added_extension("part");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
        let mut file = BufWriter::new(file.map_err(failed)?);
        let (mut after, mut entries) = (i64::MIN, 0_u64);
        loop {
            let page = self.store.entries_aside(damage.kept, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            for entry in &page {
                line(&mut file, &view(entry)).map_err(failed)?;
                entries = entries.saturating_add(1);
            }
        }
        if entries != damage.aside {
            return Err(RecoveryError(format!(
                "{entries} entries do not fit, and there were {}",
                damage.aside
            )));
        }
        // What is no checkpoint is none.
        if let Ok(Some(note)) = self.store.newest_checkpoint().await {
            line(&mut file, &json!({ "checkpoint": note })).map_err(failed)?;
        }
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::rename(&part, &path).map_err(failed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(path)
    }
}

fn line(file: &mut impl Write, value: &Value) -> io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}

fn view(EntryAside { seq, said }: &EntryAside) -> Value {
    match said {
        Ok(said) => json!(EntryView::of(said)),
        Err(columns) => {
            let columns: Map<_, _> = columns
                .iter()
                .map(|column| {
                    let value = match &column.value {
                        RawValue::Nothing => Value::Null,
                        RawValue::Number(number) => json!(number),
                        RawValue::Bytes(bytes) => json!(HEXLOWER.encode(bytes)),
                    };
                    (column.name.clone(), value)
                })
                .collect();
            json!({ "seq": seq, "columns": columns })
        }
    }
}
