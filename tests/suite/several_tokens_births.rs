//! Keys of several tokens whose making is interrupted, at each step that changes a token: the next run ends with one set,
//! and never are there two keys of one name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use fault_module::{Fault, Function, Kind};
use serde_json::Value;

use crate::fault_module::FaultModule;
use crate::modules::{Feature, passed_over};
use crate::operator::done;
use crate::processes::{children, wait_until_gone};
use crate::several_tokens::{World, init_command};
use crate::token::TestToken;

/// What changes a token, or makes what is to be wrapped for one.
const CHANGING: [Function; 5] = [
    Function::C_CreateObject,
    Function::C_GenerateKey,
    Function::C_WrapKey,
    Function::C_UnwrapKey,
    Function::C_DestroyObject,
];

/// Kinds and versions.
type Names = BTreeSet<(String, u64)>;

/// A set of two behind one fault module, which counts what both are asked.
struct Faulty {
    world: World,
    faults: FaultModule,
}

impl Faulty {
    fn new() -> Self {
        let mut world = World::made();
        let faults = world.first.with_faults();
        world.second.boot.module = world.first.boot.module.clone();
        world.second.environment = world.first.environment.clone();
        // What the fault module shares with the test is beside the first one.
        world.second.boot.reach.writes.extend(world.first.boot.reach.writes.clone());
        Self { world, faults }
    }

    /// The tokens as they are now.
    fn keep(&self) -> [kept::Tree; 2] {
        [&self.world.first, &self.world.second].map(|token| kept::Tree::read(&token.tokens()))
    }

    fn put_back(&self, kept: &[kept::Tree; 2]) {
        for (token, tree) in [&self.world.first, &self.world.second].into_iter().zip(kept) {
            tree.write(&token.tokens());
        }
    }

    /// Nothing that both have finished differs.
    fn has_no_two_keys_of_one_name(&self) {
        let [first, second] = self.world.shared();
        for (name, check) in &first {
            assert!(second.get(name).is_none_or(|other| other == check), "two keys are {name:?}");
        }
    }

    fn is_whole(&self) -> Names {
        let keys = self.world.list();
        assert!(keys.iter().all(|key| key["unfinished"] == false), "{keys:?}");
        let [first, second] = self.world.shared();
        assert_eq!(first, second);
        let names = |token: &TestToken| -> BTreeSet<_> {
            let of_it = keys.iter().filter(|key| key["token"] == token.boot.token_label.as_str());
            of_it.map(name_of).collect()
        };
        let of_both = [&self.world.first, &self.world.second].map(names);
        assert_eq!(of_both[0], of_both[1]);
        of_both[0].clone()
    }
}

fn name_of(key: &Value) -> (String, u64) {
    (key["kind"].as_str().unwrap().to_owned(), key["version"].as_u64().unwrap())
}

/// What a token's folder holds, to be put back.
mod kept {
    use super::{Path, fs};
    use std::path::PathBuf;

    pub struct Tree(Vec<(PathBuf, Vec<u8>)>);

    /// A module keeps a folder for each token there, or a file.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let (folders, mut files): (Vec<_>, Vec<_>) = entries(folder).partition(|path| path.is_dir());
        files.extend(folders.iter().flat_map(|folder| entries(folder)));
        files
    }

    impl Tree {
        pub fn read(folder: &Path) -> Self {
            let named = |path: PathBuf| {
                let content = fs::read(&path).unwrap();
                (path.strip_prefix(folder).unwrap().to_owned(), content)
            };
            Self(files(folder).into_iter().map(named).collect())
        }

        pub fn write(&self, folder: &Path) {
            for path in files(folder) {
                fs::remove_file(path).unwrap();
            }
            for (path, content) in &self.0 {
                fs::write(folder.join(path), content).unwrap();
            }
        }
    }
}

/// Interrupts a command at each call of each of these functions, and runs it and `init` again.
fn interrupt_everywhere(arguments: &[&str], functions: &[Function], grown: impl Fn(&Names) -> bool) {
    let faulty = Faulty::new();
    let (before, kept) = (faulty.is_whole(), faulty.keep());
    let mut cases = 0;
    for function in functions.iter().copied() {
        for call in 1.. {
            faulty.put_back(&kept);
            let fault = faulty.faults.set(Fault::of(function, Kind::Segfault).from_call(call).once());
            let interrupted = faulty.world.keys(arguments);
            let was_met = fault.count() > 0;
            fault.lift();
            if !was_met {
                // It has no more such calls.
                done(&interrupted);
                assert!(grown(&faulty.is_whole()));
                break;
            }
            cases += 1;
            let case = format!("{arguments:?} interrupted at call {call} of {function:?}");
            assert!(!interrupted.status.success(), "{case}: the process died");
            faulty.has_no_two_keys_of_one_name();
            let again = match call % 2 {
                0 => faulty.world.init(),
                _ => faulty.world.keys(arguments),
            };
            let said = String::from_utf8_lossy(&again.stderr);
            assert!(again.status.success(), "{case}, and again: {said}");
            let now = faulty.is_whole();
            assert!(now.is_superset(&before), "{case}");
            assert!(call % 2 == 0 || grown(&now), "{case}: {now:?}");
        }
    }
    println!("{arguments:?}: {cases} interruptions, each ended whole");
    assert!(cases >= 8, "{cases}");
}

#[test]
fn a_birth_that_is_interrupted_anywhere_ends_whole() {
    if passed_over(Feature::Labels) {
        return;
    }
    interrupt_everywhere(&["rotate", "row"], &CHANGING, |names| {
        names.contains(&("row".into(), 3)) || names.contains(&("row".into(), 4))
    });
}

#[test]
fn pairs_of_two_tokens_that_are_interrupted_anywhere_end_whole() {
    if passed_over(Feature::Labels) {
        return;
    }
    let functions = [Function::C_CreateObject, Function::C_GenerateKeyPair, Function::C_DestroyObject];
    interrupt_everywhere(&["rotate", "attest"], &functions, |names| {
        names.iter().any(|(kind, version)| kind == "attest" && *version > 1)
    });
}

/// The command itself is killed while a token works for it: nothing goes on behind its back.
#[test]
fn a_command_that_is_killed_takes_its_work_with_it() {
    if passed_over(Feature::Labels) {
        return;
    }
    let faulty = Faulty::new();
    let before = faulty.is_whole();
    for (function, call) in [
        (Function::C_GenerateKey, 1),
        (Function::C_WrapKey, 2),
        (Function::C_UnwrapKey, 1),
        (Function::C_UnwrapKey, 2),
        (Function::C_DestroyObject, 6),
    ] {
        let hang = faulty
            .faults
            .set(Fault::of(function, Kind::Hang(Duration::from_secs(3_600))).from_call(call).once());
        let mut command = rotate_command(&faulty.world.config());
        let mut child = command.spawn().unwrap();
        hang.await_fired(1);
        let tasks = children(child.id() as i32, "key-task");
        assert_eq!(tasks.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until_gone(tasks[0]);
        hang.lift();
        faulty.has_no_two_keys_of_one_name();
        let said = again(&faulty);
        assert!(faulty.is_whole().is_superset(&before), "{said}");
    }
}

fn again(faulty: &Faulty) -> String {
    let output: Output = init_command(&faulty.world.config(), None).output().unwrap();
    done(&output)
}

fn rotate_command(config: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(crate::token::BINARY);
    command.args(["keys", "rotate", "kek", "--config"]).arg(config);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    command
}
