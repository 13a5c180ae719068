//! Which system calls each process may make.
//!
//! What is on no list is refused with `EPERM`: a library that tries something unusual gets an error and no crash. Nobody
//! may start a program or a process, look into another one, mount, load code into the kernel, use `io_uring` (whose calls no
//! filter sees), `userfaultfd`, `bpf`, `perf_event_open`, `keyctl` or `memfd_create`, or make a namespace. Of a custodian that
//! is so before its module's code first runs ([`BEFORE_MODULE`]): what was started then would be confined by nothing else.

use nix::libc::{self, c_long};

/// When a call is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// Always.
    Always,
    /// If these bits of the argument are those.
    Bits { argument: u8, mask: u64, are: u64 },
    /// If any of these bits of the argument is set.
    AnyBit { argument: u8, bits: u64 },
    /// If the argument, taken as 32 bits, is one of these.
    OneOf(u8, &'static [u64]),
    /// If the argument, taken as 32 bits, is none of these.
    NoneOf(u8, &'static [u64]),
    /// If the first argument is this process.
    Itself,
    /// If the first argument is not this process.
    NotItself,
    /// Of `kill`: if it signals anybody but this process. Signal 0 only asks whether a process is there.
    SignalsOther,
    /// Of `sendto`: to the peer that there is. An address, or `MSG_FASTOPEN`, would make a connection without `connect`.
    Unaddressed,
    /// Of `prlimit64`: its own limits, which it reads and does not change.
    OwnLimits,
}

use When::{Always, AnyBit, Bits, Itself, NoneOf, NotItself, OneOf, OwnLimits, SignalsOther, Unaddressed};

/// A call, and when it is allowed.
pub(super) type Call = (c_long, When);

/// `clone3` has its flags where no filter can look: it is refused so that libc falls back on `clone`.
pub(super) const NOT_THERE: &[Call] = &[(libc::SYS_clone3, Always)];

/// What every process does: memory, threads, time, files that it may open, streams that it has.
pub(super) const COMMON: &[Call] = &[
    // Memory.
    (libc::SYS_brk, Always),
    (libc::SYS_munmap, Always),
    (libc::SYS_mremap, Always),
    (libc::SYS_madvise, Always),
    (libc::SYS_msync, Always),
    (libc::SYS_mincore, Always),
    (libc::SYS_membarrier, Always),
    // Threads, and no processes.
    (libc::SYS_clone, Bits { argument: 0, mask: CLONE_THREAD, are: CLONE_THREAD }),
    (libc::SYS_clone3, Always), // answered before, by the list of what is not there
    (libc::SYS_futex, Always),
    (libc::SYS_set_robust_list, Always),
    (libc::SYS_get_robust_list, Always),
    (libc::SYS_set_tid_address, Always),
    (libc::SYS_rseq, Always),
    (libc::SYS_gettid, Always),
    (libc::SYS_getpid, Always),
    (libc::SYS_getppid, Always),
    (libc::SYS_sched_yield, Always),
    (libc::SYS_sched_getaffinity, Always),
    (libc::SYS_sched_getparam, Always),
    (libc::SYS_sched_getscheduler, Always),
    (libc::SYS_getcpu, Always),
    (libc::SYS_exit, Always),
    (libc::SYS_exit_group, Always),
    (libc::SYS_rt_sigaction, Always),
    (libc::SYS_rt_sigprocmask, Always),
    (libc::SYS_rt_sigpending, Always),
    (libc::SYS_rt_sigreturn, Always),
    (libc::SYS_rt_sigtimedwait, Always),
    (libc::SYS_sigaltstack, Always),
    (libc::SYS_restart_syscall, Always),
    // Signals to itself, such as those of abort().
    (libc::SYS_kill, Itself),
    (libc::SYS_tgkill, Itself),
    (libc::SYS_prctl, OneOf(0, PRCTLS)),
    (libc::SYS_prlimit64, OwnLimits),
    // Time.
    (libc::SYS_clock_gettime, Always),
    (libc::SYS_clock_getres, Always),
    (libc::SYS_clock_nanosleep, Always),
    (libc::SYS_nanosleep, Always),
    (libc::SYS_gettimeofday, Always),
    (libc::SYS_times, Always),
    // Files: which ones, Landlock says.
    (libc::SYS_openat, Always),
    (libc::SYS_close, Always),
    (libc::SYS_close_range, Always),
    (libc::SYS_read, Always),
    (libc::SYS_write, Always),
    (libc::SYS_readv, Always),
    (libc::SYS_writev, Always),
    (libc::SYS_pread64, Always),
    (libc::SYS_pwrite64, Always),
    (libc::SYS_preadv, Always),
    (libc::SYS_pwritev, Always),
    (libc::SYS_lseek, Always),
    (libc::SYS_fstat, Always),
    (libc::SYS_newfstatat, Always),
    (libc::SYS_statx, Always),
    (libc::SYS_statfs, Always),
    (libc::SYS_fstatfs, Always),
    (libc::SYS_faccessat, Always),
    (libc::SYS_faccessat2, Always),
    (libc::SYS_readlinkat, Always),
    (libc::SYS_getdents64, Always),
    (libc::SYS_getcwd, Always),
    (libc::SYS_fcntl, OneOf(1, FCNTLS)),
    (libc::SYS_flock, Always),
    (libc::SYS_fsync, Always),
    (libc::SYS_fdatasync, Always),
    (libc::SYS_ftruncate, Always),
    (libc::SYS_fallocate, Always),
    (libc::SYS_fadvise64, Always),
    (libc::SYS_unlinkat, Always),
    (libc::SYS_renameat2, Always),
    (libc::SYS_mkdirat, Always),
    // SQLite gives its files to the owner of the database.
    (libc::SYS_fchown, Always),
    (libc::SYS_umask, Always),
    (libc::SYS_dup, Always),
    (libc::SYS_dup3, Always),
    // Streams that it has, and waiting for them.
    (libc::SYS_recvfrom, Always),
    (libc::SYS_recvmsg, Always),
    (libc::SYS_shutdown, Always),
    (libc::SYS_getsockopt, Always),
    (libc::SYS_setsockopt, Always),
    (libc::SYS_getsockname, Always),
    (libc::SYS_getpeername, Always),
    (libc::SYS_ppoll, Always),
    (libc::SYS_pselect6, Always),
    (libc::SYS_eventfd2, Always),
    (libc::SYS_pipe2, Always),
    (libc::SYS_epoll_create1, Always),
    (libc::SYS_epoll_ctl, Always),
    (libc::SYS_epoll_pwait, Always),
    (libc::SYS_epoll_pwait2, Always),
    // What the system is, and who this is.
    (libc::SYS_getrandom, Always),
    (libc::SYS_uname, Always),
    (libc::SYS_sysinfo, Always),
    (libc::SYS_getrusage, Always),
    (libc::SYS_getuid, Always),
    (libc::SYS_geteuid, Always),
    (libc::SYS_getgid, Always),
    (libc::SYS_getegid, Always),
    (libc::SYS_getresuid, Always),
    (libc::SYS_getresgid, Always),
    (libc::SYS_getgroups, Always),
    (libc::SYS_getpriority, Always),
    // For a further, narrower filter.
    (libc::SYS_seccomp, Always),
];

/// What newer architectures have no more.
#[cfg(target_arch = "x86_64")]
pub(super) const LEGACY: &[Call] = &[
    (libc::SYS_open, Always),
    (libc::SYS_stat, Always),
    (libc::SYS_lstat, Always),
    (libc::SYS_access, Always),
    (libc::SYS_readlink, Always),
    (libc::SYS_getdents, Always),
    (libc::SYS_unlink, Always),
    (libc::SYS_rename, Always),
    (libc::SYS_renameat, Always),
    (libc::SYS_mkdir, Always),
    (libc::SYS_rmdir, Always),
    (libc::SYS_dup2, Always),
    (libc::SYS_poll, Always),
    (libc::SYS_select, Always),
    (libc::SYS_epoll_wait, Always),
    (libc::SYS_pipe, Always),
    (libc::SYS_time, Always),
    (libc::SYS_getrlimit, Always),
    (libc::SYS_arch_prctl, Always),
];
/// `renameat`, which libc uses there and the crate does not name: the kernel's `asm-generic/unistd.h`.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const LEGACY: &[Call] = &[(38, Always)];

/// The front, besides: connections that come to it. No page of it ever becomes code.
pub(super) const FRONT: &[Call] = &[
    (libc::SYS_accept4, Always),
    (libc::SYS_mmap, Bits { argument: 2, mask: PROT_EXEC, are: 0 }),
    (libc::SYS_mprotect, Bits { argument: 2, mask: PROT_EXEC, are: 0 }),
    (libc::SYS_ioctl, OneOf(1, FRONT_IOCTLS)),
    // Until it is ready: the operators' socket is made by then.
    (libc::SYS_socket, OneOf(0, &[AF_UNIX])),
    (libc::SYS_bind, Always),
    (libc::SYS_listen, Always),
    (libc::SYS_fchmod, Always),
    (libc::SYS_fchmodat, Always),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, Always),
];

/// Taken from the front again when it is ready.
pub(super) const FRONT_NO_MORE: &[Call] = &[
    (libc::SYS_socket, Always),
    (libc::SYS_bind, Always),
    (libc::SYS_listen, Always),
    (libc::SYS_seccomp, Always),
    // No rule about files covers modes: it could open a token's files to everybody.
    (libc::SYS_fchmod, Always),
    (libc::SYS_fchmodat, Always),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, Always),
];

/// What goes over streams to whom they lead to, and nowhere else.
pub(super) const STREAMS: &[Call] =
    &[(libc::SYS_sendto, Unaddressed), (libc::SYS_sendmsg, Bits { argument: 2, mask: MSG_FASTOPEN, are: 0 })];

/// A custodian, besides: what libraries of vendors do with memory, devices and each other.
pub(super) const CUSTODIAN: &[Call] = &[
    // They load further libraries when they need them.
    (libc::SYS_mmap, Always),
    (libc::SYS_mprotect, Always),
    // Keys that are not to be paged out.
    (libc::SYS_mlock, Always),
    (libc::SYS_mlock2, Always),
    (libc::SYS_munlock, Always),
    // Whether the process is there that a mark in the token names.
    (libc::SYS_kill, OneOf(1, &[0])),
    // Devices, but nothing that types on a terminal.
    (libc::SYS_ioctl, NoneOf(1, FOREIGN_IOCTLS)),
    (libc::SYS_socketpair, Always),
    (libc::SYS_linkat, Always),
    (libc::SYS_symlinkat, Always),
    (libc::SYS_fchownat, Always),
    (libc::SYS_sync_file_range, Always),
    (libc::SYS_sched_get_priority_max, Always),
    (libc::SYS_sched_get_priority_min, Always),
    (libc::SYS_setitimer, Always),
    (libc::SYS_getitimer, Always),
    (libc::SYS_timer_create, Always),
    (libc::SYS_timer_settime, Always),
    (libc::SYS_timer_gettime, Always),
    (libc::SYS_timer_delete, Always),
    (libc::SYS_timerfd_create, Always),
    (libc::SYS_timerfd_settime, Always),
    (libc::SYS_timerfd_gettime, Always),
    // What several processes with one module share. The front has none of it.
    (libc::SYS_shmget, Always),
    (libc::SYS_shmat, Always),
    (libc::SYS_shmdt, Always),
    (libc::SYS_shmctl, Always),
    (libc::SYS_semget, Always),
    (libc::SYS_semop, Always),
    (libc::SYS_semtimedop, Always),
    (libc::SYS_semctl, Always),
];

/// What a module with `hsm.network` speaks over; netlink tells it of the machine's addresses. An `AF_VSOCK` would be a way
/// to a host that no firewall sees, an `AF_ALG` is code of the kernel's that nobody needs.
const FAMILIES: &[u64] = &[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];

/// A custodian whose module speaks to its HSM over a network, or to a daemon of this machine (`hsm.network`).
pub(super) const NETWORK: &[Call] = &[
    (libc::SYS_socket, OneOf(0, FAMILIES)),
    (libc::SYS_connect, Always),
    (libc::SYS_bind, Always),
    (libc::SYS_sendto, Always),
    (libc::SYS_sendmsg, Always),
    (libc::SYS_sendmmsg, Always),
    (libc::SYS_recvmmsg, Always),
];

/// Taken from a custodian before its module is loaded, unless it has `hsm.network`: what fails later is to fail at once.
pub(super) const NO_SOCKET: &[Call] = &[
    (libc::SYS_socket, Always),
    (libc::SYS_connect, Always),
    (libc::SYS_bind, Always),
    (libc::SYS_listen, Always),
    (libc::SYS_sendto, Bits { argument: 3, mask: MSG_FASTOPEN, are: MSG_FASTOPEN }),
    (libc::SYS_sendmsg, Bits { argument: 2, mask: MSG_FASTOPEN, are: MSG_FASTOPEN }),
    (libc::SYS_sendmmsg, Bits { argument: 3, mask: MSG_FASTOPEN, are: MSG_FASTOPEN }),
    // Of a pair of datagrams each end sends also to whoever is named with a message: to any socket with a path.
    (libc::SYS_socketpair, NoneOf(0, &[AF_UNIX])),
    (libc::SYS_socketpair, AnyBit { argument: 1, bits: DATAGRAMS }),
];

/// In the place of [`NO_SOCKET`] with `hsm.network`: sockets of other families, and listening.
pub(super) const NO_OTHER_SOCKET: &[Call] = &[
    (libc::SYS_socket, NoneOf(0, FAMILIES)),
    (libc::SYS_listen, Always),
    (libc::SYS_socketpair, NoneOf(0, &[AF_UNIX])),
];

/// Taken from a custodian before its module is loaded, whose code runs from there on.
pub(super) const BEFORE_MODULE: &[Call] = &[
    // Processes and programs, which would outlive it; threads stay possible.
    (libc::SYS_clone, Bits { argument: 0, mask: CLONE_THREAD, are: 0 }),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, Always),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, Always),
    (libc::SYS_execve, Always),
    (libc::SYS_execveat, Always),
    (libc::SYS_unshare, Always),
    (libc::SYS_setns, Always),
    // That others may look into it, and it into others.
    (libc::SYS_prctl, NoneOf(0, PRCTLS)),
    (libc::SYS_ptrace, Always),
    (libc::SYS_process_vm_readv, Always),
    (libc::SYS_process_vm_writev, Always),
    (libc::SYS_process_madvise, Always),
    (libc::SYS_pidfd_open, Always),
    (libc::SYS_pidfd_getfd, Always),
    (libc::SYS_pidfd_send_signal, Always),
    (libc::SYS_kcmp, Always),
    (libc::SYS_kill, SignalsOther),
    (libc::SYS_tgkill, NotItself),
    (libc::SYS_tkill, Always),
    (libc::SYS_rt_sigqueueinfo, Always),
    (libc::SYS_rt_tgsigqueueinfo, Always),
    (libc::SYS_fcntl, NoneOf(1, FCNTLS)),
    (libc::SYS_ioctl, OneOf(1, FOREIGN_IOCTLS)),
    // How long and with what priority others run: a limit of time would kill them. What sets processors and policies stays
    // (sched_setaffinity): a C library makes threads with it, by a number that no filter tells from another process's.
    (libc::SYS_prlimit64, NoneOf(0, &[0])),
    (libc::SYS_setpriority, Always),
    (libc::SYS_ioprio_set, Always),
    // What would go on where no filter sees it.
    (libc::SYS_io_uring_setup, Always),
    (libc::SYS_io_uring_enter, Always),
    (libc::SYS_io_uring_register, Always),
    (libc::SYS_memfd_create, Always),
    (libc::SYS_userfaultfd, Always),
    (libc::SYS_bpf, Always),
    (libc::SYS_perf_event_open, Always),
    (libc::SYS_keyctl, Always),
    (libc::SYS_add_key, Always),
    (libc::SYS_request_key, Always),
    (libc::SYS_mq_open, Always),
    // No rule about files covers modes, and not every kernel's has one about truncating. What stays its owner's alone is no
    // matter: NSS says so of each database that it makes.
    (libc::SYS_fchmod, AnyBit { argument: 1, bits: FOR_OTHERS }),
    (libc::SYS_fchmodat, AnyBit { argument: 2, bits: FOR_OTHERS }),
    (SYS_FCHMODAT2, AnyBit { argument: 2, bits: FOR_OTHERS }),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, AnyBit { argument: 1, bits: FOR_OTHERS }),
    (libc::SYS_truncate, Always),
    (libc::SYS_setxattr, Always),
    (libc::SYS_lsetxattr, Always),
    (libc::SYS_fsetxattr, Always),
    (SYS_SETXATTRAT, Always),
    (SYS_FILE_SETATTR, Always),
];

/// Taken from a custodian once it is logged in.
pub(super) const CUSTODIAN_NO_MORE: &[Call] = &[(libc::SYS_seccomp, Always)];

/// What the crate does not name everywhere: the kernel's `asm-generic/unistd.h`.
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;
const SYS_FILE_SETATTR: c_long = 469;
/// Bits of a file's mode that give something to others than its owner.
const FOR_OTHERS: u64 = 0o7077;
/// `SOCK_DGRAM`, and `SOCK_RAW`, which is the same to a pair; neither `SOCK_STREAM` nor `SOCK_SEQPACKET` has it.
const DATAGRAMS: u64 = libc::SOCK_DGRAM as u64;
const MSG_FASTOPEN: u64 = libc::MSG_FASTOPEN as u64;
const CLONE_THREAD: u64 = libc::CLONE_THREAD as u64;
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
const AF_UNIX: u64 = libc::AF_UNIX as u64;
const AF_INET: u64 = libc::AF_INET as u64;
const AF_INET6: u64 = libc::AF_INET6 as u64;
const AF_NETLINK: u64 = libc::AF_NETLINK as u64;
/// Names of threads and of memory, and what a filter needs to be installed. Nothing makes a process dumpable again.
const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
    libc::PR_SET_VMA as u64,
];
const FRONT_IOCTLS: &[u64] = &[libc::FIONBIO, libc::FIOCLEX, libc::TCGETS];
/// Descriptors, locks and flags; not `F_SETOWN` and `F_SETSIG`, by which a descriptor signals somebody else.
const FCNTLS: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_GETLK as u64,
    libc::F_SETLK as u64,
    libc::F_SETLKW as u64,
    libc::F_OFD_GETLK as u64,
    libc::F_OFD_SETLK as u64,
    libc::F_OFD_SETLKW as u64,
];
/// What types on somebody's terminal (`TIOCSTI`, `TIOCLINUX`) and has a descriptor signal somebody (`FIOSETOWN`, `SIOCSPGRP`):
/// the kernel's headers, `asm-generic/ioctls.h` and `asm-generic/sockios.h`.
const FOREIGN_IOCTLS: &[u64] = &[libc::TIOCSTI, 0x541c, 0x8901, 0x8902];
