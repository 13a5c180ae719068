//! The fuzz targets of `fuzz/`, without a fuzzer: each over its saved corpus, and over mutations of it that
//! are the same ones every time.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// Of each file of a corpus at most, and of all of them together for at most so long.
const MUTATIONS_PER_FILE: usize = 1_000;
const MUTATIONS_TIME: Duration = Duration::from_secs(3);

/// What JSON, DER, PEM, suites and postcard are made of, or stumble over.
const PIECES: [&[u8]; 16] = [
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"[[",
    b",",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"-----",
    b"\n",
    b"=",
    b"\x30\x80",
    b"\xff\xff\xff\xff\x0f",
    b"\xc3\xa4",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// Names in a folder, without their endings.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            entry.unwrap().path().with_extension("").file_name().unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    names.sort();
    names
}

/// The files of a target's corpus, in the order of their names.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder("corpus").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

/// xorshift64*: the same numbers every time, which is all it has to be good for.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    /// One to three changes: bits, bytes, cuts, repetitions, pieces, and parts of another file.
    fn mutated(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            let end = at + self.below(bytes.len() - at + 1);
            match self.below(7) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
                3 => drop(bytes.splice(at..at, PIECES[self.below(PIECES.len())].iter().copied())),
                4 => {
                    let from = self.below(other.len() + 1);
                    bytes.splice(at..end, other[from..].iter().copied());
                }
                kind => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = if kind == 5 { *byte ^ 1 << self.below(8) } else { self.below(256) as u8 };
                    }
                }
            }
        }
        bytes
    }
}

fn run(target: targets::Target, input: &[u8], what: &str) {
    assert!(catch_unwind(|| target(input)).is_ok(), "{what}: b\"{}\"", input.escape_ascii());
}

fn smoke(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
    let files = corpus(name);
    for (path, input) in &files {
        run(target, input, &path.display().to_string());
    }
    let (mut dice, begun, mut runs) = (Dice(0x9e37_79b9_7f4a_7c15), Instant::now(), 0);
    // Round by round, so that a slow machine gives every file its share.
    for round in 0..MUTATIONS_PER_FILE {
        for (path, input) in &files {
            let other = &files[dice.below(files.len())].1;
            run(target, &dice.mutated(input, other), &format!("{}, mutation {round}", path.display()));
            runs += 1;
        }
        if begun.elapsed() > MUTATIONS_TIME {
            break;
        }
    }
    println!("{name}: {} files, {runs} mutations", files.len());
    assert!(runs >= files.len(), "at least one of each file");
}

macro_rules! each_over_its_corpus_and_mutations_of_it {
    ($($name:ident),*) => {
        const SMOKED: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { smoke(stringify!($name)); })*
    };
}

each_over_its_corpus_and_mutations_of_it!(
    certificate_chain,
    client_data,
    credential_body,
    frame,
    jwk,
    jws,
    ocra_suite,
    pem,
    row,
    signature,
    transaction_body
);

#[test]
fn every_target_has_a_wrapper_a_corpus_and_a_test_and_there_are_no_others() {
    let targets = targets::TARGETS.map(|(name, _)| name);
    assert_eq!(names(&folder("fuzz_targets")), targets);
    assert_eq!(names(&folder("corpus")), targets);
    assert_eq!(SMOKED, targets);
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    for target in targets {
        let wrapper = fs::read_to_string(folder("fuzz_targets").join(target).with_extension("rs")).unwrap();
        assert!(wrapper.contains(&format!("hsm_authd_fuzz::{target}::run(input)")), "{target}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
        let files = corpus(target);
        assert!(files.len() >= 24, "{target} has a corpus of {}", files.len());
        for (path, input) in files {
            assert!(input.len() <= 1_100, "{} is no small file", path.display());
        }
    }
}
