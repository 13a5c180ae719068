//! Lists of system calls as filters of the kernel (seccomp), for every thread of this process and those to come.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use nix::libc::{self, c_long};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter, apply_filter_all_threads, sock_filter,
};

use super::calls::{Call, When};

/// Why a filter is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The kernel has none, or whoever runs this process forbids them.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    NotThere(i32),
    /// This one could not be installed.
    #[error("{0}")]
    This(String),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::This(error.to_string())
    }
}

/// Allows what is listed, and answers anything else with `EPERM`.
pub(super) fn allow(lists: &[&[Call]]) -> Result<(), Failure> {
    let program = program(rules(lists.iter().copied().flatten())?, error(libc::EPERM), SeccompAction::Allow)?;
    apply_filter_all_threads(&program).map_err(failure)
}

/// A call that is listed several times is meant if any of its conditions holds. `Always` is an empty list of them, which one
/// beside it would silently replace.
fn rules<'c>(calls: impl IntoIterator<Item = &'c Call>) -> Result<Rules, Failure> {
    let mut rules = Rules::new();
    for (call, when) in calls {
        let more = conditions(*when)?;
        match rules.entry(*call) {
            Entry::Vacant(first) => drop(first.insert(more)),
            Entry::Occupied(listed) if listed.get().is_empty() != more.is_empty() => {
                return Err(Failure::This(format!("call {call} is listed without and with a condition")));
            }
            Entry::Occupied(mut listed) => listed.get_mut().extend(more),
        }
    }
    Ok(rules)
}

/// Answers what is listed with this error, and leaves the rest to the other filters.
pub(super) fn refuse(lists: &[&[Call]], errno: i32) -> Result<(), Failure> {
    let program = program(rules(lists.iter().copied().flatten())?, SeccompAction::Allow, error(errno))?;
    apply_filter_all_threads(&program).map_err(failure)
}

fn conditions(when: When) -> Result<Vec<SeccompRule>, BackendError> {
    let dword =
        |argument, operator, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    let rule = |condition| SeccompRule::new(vec![condition]);
    match when {
        When::Always => Ok(Vec::new()),
        When::Bits { argument, mask, are } => {
            let condition =
                SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), are)?;
            Ok(vec![rule(condition)?])
        }
        When::AnyBit { argument, bits } => (0..u64::BITS)
            .map(|place| bits & (1 << place))
            .filter(|bit| *bit != 0)
            .map(|bit| rule(dword(argument, SeccompCmpOp::MaskedEq(bit), bit)?))
            .collect(),
        When::OneOf(argument, values) => {
            values.iter().map(|value| rule(dword(argument, SeccompCmpOp::Eq, *value)?)).collect()
        }
        When::NoneOf(argument, values) => {
            let all: Result<_, _> =
                values.iter().map(|value| dword(argument, SeccompCmpOp::Ne, *value)).collect();
            Ok(vec![SeccompRule::new(all?)?])
        }
        When::Itself => Ok(vec![rule(dword(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?)?]),
        When::NotItself => Ok(vec![rule(dword(0, SeccompCmpOp::Ne, u64::from(std::process::id()))?)?]),
        When::SignalsOther => {
            let another = dword(0, SeccompCmpOp::Ne, u64::from(std::process::id()))?;
            Ok(vec![SeccompRule::new(vec![another, dword(1, SeccompCmpOp::Ne, 0)?])?])
        }
        When::Unaddressed => {
            let fastopen = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
            let nobody = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
            let no_opening = dword(3, SeccompCmpOp::MaskedEq(fastopen), 0)?;
            Ok(vec![SeccompRule::new(vec![nobody, no_opening])?])
        }
        When::OwnLimits => {
            let nothing_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
            Ok(vec![SeccompRule::new(vec![dword(0, SeccompCmpOp::Eq, 0)?, nothing_new])?])
        }
    }
}

/// The same for the calling thread alone: for a trial.
pub(super) fn refuse_in_this_thread(calls: &[Call], errno: i32) -> Result<(), Failure> {
    let program = program(rules(calls)?, SeccompAction::Allow, error(errno))?;
    apply_filter(&program).map_err(failure)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn error(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.cast_unsigned())
}

fn program(rules: Rules, others: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, Failure> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let lists: BpfProgram = SeccompFilter::new(rules, others, listed, architecture)?.try_into()?;
    Ok(NOT_BY_ANOTHER_NUMBER.into_iter().chain(lists).collect())
}

/// Answers with `EPERM` what bears a number that no list has: where a kernel of x86-64 knows x32, each call is there a second
/// time, with the bit 30 set, and a list of what is refused would let it through. As in the kernel's `seccomp_filter.rst`.
const NOT_BY_ANOTHER_NUMBER: [sock_filter; 3] = [
    // The call's number is the first of what a filter sees: load it, pass over the next line if it is less, and return.
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 },
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16, jt: 0, jf: 1, k: X32_BIT },
    sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
    },
];
/// `__X32_SYSCALL_BIT`. No other architecture has so many calls.
const X32_BIT: u32 = 0x4000_0000;

fn failure(error: Error) -> Failure {
    match error {
        Error::Prctl(error) | Error::Seccomp(error) => match error.raw_os_error() {
            Some(errno @ (libc::ENOSYS | libc::EINVAL | libc::EPERM | libc::EACCES)) => {
                Failure::NotThere(errno)
            }
            _ => Failure::This(error.to_string()),
        },
        other => Failure::This(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_listed_with_conditions_or_without() {
        let (always, if_one) = ((libc::SYS_socket, When::Always), (libc::SYS_socket, When::OneOf(0, &[1])));
        let if_two = (libc::SYS_socket, When::OneOf(0, &[2]));
        let conditions = |calls: &[Call]| rules(calls).map(|rules| rules[&libc::SYS_socket].len());
        assert_eq!(conditions(&[always, always]).unwrap(), 0);
        assert_eq!(conditions(&[if_one, if_two]).unwrap(), 2);
        for both in [[always, if_one], [if_one, always]] {
            assert!(matches!(conditions(&both), Err(Failure::This(_))));
        }
    }
}
