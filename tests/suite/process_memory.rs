//! What a process shows of itself to root: its memory, its command line, its environment, its descriptors.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Of a mapping at most so much is read at once, in bytes, and the next part begins so much before the end of the last one.
const PART: usize = 64 << 20;
const OVERLAP: usize = 4_096;

/// Whether this is root: nobody else looks into the service's processes.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Gives all that a process can read of its own memory to `look`, mapping by mapping; how many bytes that were.
pub fn each_part(pid: i32, mut look: impl FnMut(&str, &[u8])) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut bytes, mut all) = (Vec::new(), 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        // The kernel's own page is nobody's to read so.
        if !rights.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [mut from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        while from < to {
            bytes.resize(usize::try_from(to - from).unwrap().min(PART), 0);
            // A mapping may have gone since, and behind a file's end there is nothing.
            let Ok(read) = memory.read_at(&mut bytes, from) else { break };
            look(line, &bytes[..read]);
            all += read;
            from += match read as u64 {
                0 => break,
                read if from + read < to && read > OVERLAP as u64 => read - OVERLAP as u64,
                read => read,
            };
        }
    }
    all
}

/// Whether these bytes are somewhere in a process's memory.
pub fn has(pid: i32, text: &[u8]) -> bool {
    let mut found = false;
    each_part(pid, |_, bytes| found = found || bytes.windows(text.len()).any(|window| window == text));
    found
}

/// Its command line and its environment.
pub fn shown(pid: i32) -> Vec<u8> {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    [read("cmdline"), read("environ")].concat()
}

/// A process with all that it has started, as far as it is there.
pub fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", all[next]));
        all.extend(list.unwrap_or_default().split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
        next += 1;
    }
    all
}

/// The two bounds of `RLIMIT_CORE`, as the kernel writes them.
pub fn core_limits(pid: i32) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    line.unwrap().split_whitespace().take(2).map(str::to_owned).collect()
}

/// How many descriptors it has open; `None`: nobody but root may look.
pub fn descriptors(pid: i32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Memory that is in RAM now, in KiB.
pub fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
