//! `hsm-authd audit` on copies of databases, and the hand of an attacker who has the file.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hsm_authd::domain::checkpoint::{Checkpoint, Head, Note};
use hsm_authd::domain::log::{Frontier, Subtree};
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::store::offline::OfflineStore;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{EncodePublicKey, LineEnding};
use rusqlite::{Connection, params};

use crate::scratch::Scratch;
use crate::token::BINARY;

/// A database that no service uses, in a folder of its own.
pub struct Copy {
    pub scratch: Scratch,
    pub path: PathBuf,
}

impl Copy {
    /// Of a database, with its WAL if it has one.
    pub fn of(database: &Path) -> Self {
        let scratch = Scratch::new();
        let path = scratch.join("copy.db");
        fs::copy(database, &path).unwrap();
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        if Path::new(&wal).exists() {
            fs::copy(&wal, scratch.join("copy.db-wal")).unwrap();
        }
        Self { scratch, path }
    }

    /// What somebody does to the file; what it leaves is in the file itself.
    pub fn tampered(&self, tamper: impl FnOnce(&Connection)) -> Self {
        let copy = Self::of(&self.path);
        let connection = Connection::open(&copy.path).unwrap();
        connection.pragma_update(None, "ignore_check_constraints", true).unwrap();
        tamper(&connection);
        let mode: String =
            connection.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete");
        drop(connection);
        copy
    }

    pub fn number(&self, sql: &str) -> i64 {
        Connection::open(&self.path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// How many entries its log has.
    pub fn size(&self) -> u64 {
        self.number("SELECT count(*) FROM audit") as u64
    }

    pub fn audit(&self, arguments: &[&str]) -> Output {
        audit(&self.path, arguments)
    }

    /// What `audit verify` says of it, which must be yes.
    pub fn verified(&self, arguments: &[&str]) -> String {
        let output = self.audit(&[&["verify"], arguments].concat());
        let (said, error) = (utf8(&output.stdout), utf8(&output.stderr));
        assert!(output.status.success(), "{error}");
        let last = said.lines().last().unwrap_or_default();
        assert!(error.is_empty() && last.starts_with("ok           every entry fits"), "{said}{error}");
        said
    }

    /// The one line of a no.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.audit(&[&["verify"], arguments].concat());
        let (said, error) = (utf8(&output.stdout), utf8(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{said}{error}");
        assert!(said.is_empty() && error.lines().count() == 1, "{said}{error}");
        error.strip_prefix("hsm-authd: ").unwrap().trim_end().to_owned()
    }

    /// The head of the log after its first entries, with the sum as it is kept.
    pub fn head(&self, size: u64) -> Head {
        let store = OfflineStore::open(&self.path).unwrap();
        let mut frontier = Frontier::default();
        store
            .entries(0, |entry| {
                if frontier.size() == size {
                    return ControlFlow::Break(());
                }
                frontier.push(entry.said.unwrap().leaf);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(frontier.size(), size);
        Head {
            origin: store.origin().unwrap(),
            size,
            root: frontier.root(),
            sum: store.ledger().unwrap().head().sum,
        }
    }
}

/// Runs `hsm-authd audit`.
pub fn audit(database: &Path, arguments: &[&str]) -> Output {
    let (command, rest) = arguments.split_first().unwrap();
    Command::new(BINARY).args(["audit", command, "--store"]).arg(database).args(rest).output().unwrap()
}

pub fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A key that signs checkpoints.
pub struct Notary(SigningKey);

impl Notary {
    /// One of 255.
    pub fn new(number: u8) -> Self {
        Self(SigningKey::from_slice(&[number; 32]).unwrap())
    }

    pub fn pem(&self) -> String {
        p256::PublicKey::from(*self.0.verifying_key()).to_public_key_pem(LineEnding::LF).unwrap()
    }

    /// A signed checkpoint.
    pub fn note(&self, head: Head, unix_s: u64) -> String {
        let checkpoint = Checkpoint { head, unix_s };
        let signature: Signature = self.0.sign(checkpoint.to_string().as_bytes());
        let key = PublicKey::from_pem(&self.pem()).unwrap();
        checkpoint.note(&key, &signature.to_bytes().into()).unwrap()
    }
}

/// Keeps a checkpoint's note in the database.
pub fn keep(connection: &Connection, size: u64, note: &str) {
    let unix_ms = Note::parse(note).unwrap().unverified().unix_s as i64 * 1_000;
    let sql = "INSERT OR REPLACE INTO checkpoint (size, unix_ms, note) VALUES (?1, ?2, ?3)";
    connection.execute(sql, params![size as i64, unix_ms, note]).unwrap();
}

/// Makes leaves and subtrees anew, as somebody does who knows how: everything but signatures.
pub fn forge_tree(connection: &Connection) {
    connection.execute("DELETE FROM audit_subtree", []).unwrap();
    let path: String =
        connection.query_row("SELECT file FROM pragma_database_list", [], |row| row.get(0)).unwrap();
    // What it reads has to be in the file.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let store = OfflineStore::open(Path::new(&path)).unwrap();
    let (mut frontier, mut leaves, mut subtrees) = (Frontier::default(), Vec::new(), Vec::new());
    store
        .entries(0, |entry| {
            let leaf = entry.said.unwrap().logged.leaf();
            leaves.push((entry.seq, leaf));
            subtrees.extend(frontier.push(leaf));
            ControlFlow::<()>::Continue(())
        })
        .unwrap();
    drop(store);
    for (seq, leaf) in leaves {
        connection.execute("UPDATE audit SET leaf = ?2 WHERE seq = ?1", params![seq, leaf.0]).unwrap();
    }
    for Subtree { level, place, hash } in subtrees {
        let sql = "INSERT INTO audit_subtree (level, place, hash) VALUES (?1, ?2, ?3)";
        connection.execute(sql, params![level, place as i64, hash.0]).unwrap();
    }
}
