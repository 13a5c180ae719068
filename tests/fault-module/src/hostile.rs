//! A module that is hostile from its first line of code on: what it tries, and what comes of it.
#![allow(unsafe_code, reason = "it asks the kernel itself, and reads memory that is nobody's to read")]

use std::ffi::{CString, c_long};
use std::fs::{self, File};
use std::io::{self, Write};
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, OnceLock};

/// The variable that makes it hostile. It names a folder, where the module writes what came of its tries to the file
/// `came`: a line each, of the stage, the act, and 0 or the error's number, with tabs between. In the folder are a file
/// `spoil`, and a socket for datagrams, `datagrams`.
pub const HOSTILE: &str = "HSM_AUTHD_FAULT_MODULE_HOSTILE";

/// The variable with what it looks for in its process's memory, each byte of it one more than it is: who looks for it has not
/// put it there. It came as 0 if it was found.
pub const WANTED: &str = "HSM_AUTHD_FAULT_MODULE_WANTED";

/// When it tries: as it is loaded, before anybody has called it; and at the first call of these functions.
pub const STAGES: [&str; 4] = ["loaded", "C_Initialize", "C_GetTokenInfo", "C_FindObjectsInit"];

/// Loading the library calls it.
#[used]
// SAFETY: the section is of pointers to functions that are called as this one may be, before `main` or by `dlopen`.
#[unsafe(link_section = ".init_array")]
static LOADED: extern "C" fn() = loaded;

extern "C" fn loaded() {
    attack("loaded");
}

/// Tries everything, if this is a stage that was not there before.
pub(crate) fn attack(stage: &'static str) {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    static SEEN: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    let Some(folder) = FOLDER.get_or_init(|| std::env::var_os(HOSTILE).map(PathBuf::from)) else { return };
    let Ok(mut seen) = SEEN.lock() else { return };
    if !STAGES.contains(&stage) || seen.contains(&stage) {
        return;
    }
    seen.push(stage);
    let mut told = String::new();
    for (act, came) in acts(folder) {
        let errno = came.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
        told += &format!("{stage}\t{act}\t{errno}\n");
    }
    let file = File::options().append(true).create(true).open(folder.join("came"));
    let _ = file.and_then(|mut file| file.write_all(told.as_bytes()));
}

/// The kernel's `asm-generic/unistd.h`.
const SETXATTRAT: c_long = 463;
const FILE_SETATTR: c_long = 469;

type Came = io::Result<()>;

fn acts(folder: &Path) -> Vec<(&'static str, Came)> {
    let named = |name: &str| CString::new(folder.join(name).into_os_string().into_encoded_bytes());
    let spoil = named("spoil").unwrap_or_default();
    let pointer = |text: &CString| text.as_ptr() as c_long;
    let here = libc::AT_FDCWD.into();
    let (parent, nice) = (std::os::unix::process::parent_id(), 20 - asked(libc::SYS_getpriority, [0; 5]));
    vec![
        ("memory", found()),
        ("process", process()),
        ("program", call(libc::SYS_execve, [pointer(&c"/nowhere/program".into()), 0, 0, 0, 0])),
        ("call by another number", call(0x4000_0000 | libc::SYS_getpid, [0; 5])),
        ("closed", closed()),
        ("openness", call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0, 0])),
        ("socket", call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0])),
        ("datagram", datagram(libc::SOCK_DGRAM, folder)),
        ("raw datagram", datagram(libc::SOCK_RAW, folder)),
        ("connecting bytes", connecting(libc::SYS_sendto, 0, libc::MSG_FASTOPEN)),
        ("connecting message", connecting(libc::SYS_sendmsg, libc::MSG_FASTOPEN, 0)),
        ("connecting messages", connecting(libc::SYS_sendmmsg, 0, libc::MSG_FASTOPEN)),
        ("pair of a network", pair(libc::AF_INET, libc::SOCK_STREAM).map(drop)),
        ("streams", pair(libc::AF_UNIX, libc::SOCK_STREAM).map(drop)),
        ("packets", pair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC).map(drop)),
        ("mode", call(libc::SYS_fchmodat, [here, pointer(&spoil), 0o666, 0, 0])),
        ("attribute", call(libc::SYS_lsetxattr, [pointer(&spoil), pointer(&c"user.x".into()), 0, 0, 0])),
        (
            "attribute from a folder",
            call(SETXATTRAT, [here, pointer(&spoil), 0, pointer(&c"user.x".into()), 0]),
        ),
        ("flags of a file", call(FILE_SETATTR, [here, pointer(&spoil), 0, 0, 0])),
        ("another's limits", limits(parent)),
        ("own limits", limits(0)),
        ("priority", call(libc::SYS_setpriority, [0, 0, nice, 0, 0])),
        ("queue", queue()),
        ("thread", std::thread::Builder::new().spawn(|| ()).map(drop)),
    ]
}

fn call(number: c_long, arguments: [c_long; 5]) -> Came {
    match asked(number, arguments) {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn asked(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> c_long {
    // SAFETY: each caller's own: pointers are null, or to what lives until the call is over, of the length that it expects.
    unsafe { libc::syscall(number, a, b, c, d, e, 0) }
}

/// Whether nobody of the same user may look into this process.
fn closed() -> Came {
    match asked(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into(), 0, 0, 0, 0]) {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
    }
}

/// One that ends at once.
fn process() -> Came {
    match asked(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0]) {
        -1 => Err(io::Error::last_os_error()),
        0 => loop {
            let _ = call(libc::SYS_exit_group, [0; 5]);
        },
        child => call(libc::SYS_wait4, [child, 0, 0, 0, 0]),
    }
}

fn pair(family: i32, kind: i32) -> io::Result<[RawFd; 2]> {
    let mut ends = [0; 2];
    // SAFETY: two places for descriptors.
    match unsafe { libc::socketpair(family, kind, 0, ends.as_mut_ptr()) } {
        0 => Ok(ends),
        _ => Err(io::Error::last_os_error()),
    }
}

/// To a socket with a path, without `socket` and `connect`; the name is where no filter looks.
fn datagram(kind: i32, folder: &Path) -> Came {
    let [end, _] = pair(libc::AF_UNIX, kind)?;
    // SAFETY: all zeros are an address without a name, and a message with nothing.
    let (mut there, mut message) = unsafe { (zeroed::<libc::sockaddr_un>(), zeroed::<libc::msghdr>()) };
    there.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = folder.join("datagrams").into_os_string().into_encoded_bytes();
    there.sun_path.iter_mut().zip(path).for_each(|(place, byte)| *place = byte as libc::c_char);
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    (message.msg_name, message.msg_namelen) = ((&raw mut there).cast(), size_of_val(&there) as u32);
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    call(libc::SYS_sendmsg, [end.into(), (&raw const message) as c_long, 0, 0, 0])
}

/// Nothing, by a call that would connect a socket of a network with its first bytes; its flags are the third argument or the
/// fourth.
fn connecting(number: c_long, third: i32, fourth: i32) -> Came {
    let [end, _] = pair(libc::AF_UNIX, libc::SOCK_STREAM)?;
    // SAFETY: all zeros are a message with nothing.
    let message = unsafe { zeroed::<libc::msghdr>() };
    call(number, [end.into(), (&raw const message) as c_long, third.into(), fourth.into(), 0])
}

/// Asked for, and not changed.
fn limits(pid: u32) -> Came {
    // SAFETY: two numbers.
    let mut limits = unsafe { zeroed::<libc::rlimit>() };
    let place = (&raw mut limits) as c_long;
    call(libc::SYS_prlimit64, [pid.into(), libc::RLIMIT_CORE as c_long, 0, place, 0])
}

fn queue() -> Came {
    let name = CString::new(format!("hsm-authd-test-{}", std::process::id())).unwrap_or_default();
    let flags = (libc::O_CREAT | libc::O_RDWR).into();
    call(libc::SYS_mq_open, [name.as_ptr() as c_long, flags, 0o600, 0, 0])?;
    call(libc::SYS_mq_unlink, [name.as_ptr() as c_long, 0, 0, 0, 0])
}

/// In what this process has written: heap, stacks, and what libraries map for themselves.
fn found() -> Came {
    let wanted = std::env::var(WANTED).map_err(io::Error::other)?.into_bytes();
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(access)) = (fields.next(), fields.next()) else { continue };
        let mut ends = range.split('-').map(|end| usize::from_str_radix(end, 16));
        let is_of_a_file = fields.nth(3).is_some_and(|name| name.starts_with('/'));
        if let (Some(Ok(begin)), Some(Ok(end))) = (ends.next(), ends.next())
            && access.starts_with("rw")
            && !is_of_a_file
        {
            let last = end - wanted.len();
            let is_there = |at: usize| {
                let mut places = (at..).zip(&wanted);
                // SAFETY: the kernel says that it is mapped and readable, and nobody else of this process works just now.
                places
                    .all(|(at, byte)| unsafe { ptr::read_volatile(at as *const u8) }.wrapping_add(1) == *byte)
            };
            if (begin..=last).any(is_there) {
                return Ok(());
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENOENT))
}
