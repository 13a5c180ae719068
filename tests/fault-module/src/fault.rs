//! What a test can ask for, and how that is written down in shared memory: as four numbers.

use std::time::Duration;

use cryptoki_sys::CK_RV;

use crate::functions::{Function, Output};

/// A fault: what goes wrong, where and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// In which function; `None`: in each.
    pub function: Option<Function>,
    /// From which call on, counted from 1 when the fault is set.
    pub first: u64,
    /// For how many calls.
    pub times: u64,
    /// In which process; `None`: in each, and calls are counted over all of them.
    pub process: Option<u32>,
    /// What goes wrong.
    pub kind: Kind,
}

impl Fault {
    /// Of one function, from its next call on, for ever, in each process.
    pub fn of(function: Function, kind: Kind) -> Self {
        Self { function: Some(function), ..Self::everywhere(kind) }
    }

    /// Of each function.
    pub fn everywhere(kind: Kind) -> Self {
        Self { function: None, first: 1, times: u64::MAX, process: None, kind }
    }

    /// Not before the `first`-th call.
    pub fn from_call(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// For so many calls.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// For one call.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// In one process only; the calls of others do not count.
    pub fn in_process(self, pid: u32) -> Self {
        Self { process: Some(pid), ..self }
    }

    /// Whether there is anything that it can do.
    pub fn is_possible(&self) -> bool {
        self.function.is_none_or(|function| self.kind.is_possible_in(function))
    }
}

/// What goes wrong in a call.
///
/// Which calls count: all of the function; for [`Kind::FailDone`] those that do more than ask for the length of what they
/// would put out; for [`Kind::Corrupt`] and [`Kind::Short`] those that have put something out; for [`Kind::Long`] those
/// that have put out anything, be it a length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Returns this, and does nothing. With `CKR_OK` it is a lie.
    Fail(CK_RV),
    /// Does it, and returns this.
    FailDone(CK_RV),
    /// Waits until the fault is lifted, or this time is over, and then goes on.
    Hang(Duration),
    /// Takes longer.
    Latency(Latency),
    /// Turns one bit of what was put out over, the lowest of the first byte being 0; beyond the last it begins again.
    Corrupt {
        /// Which.
        bit: u64,
    },
    /// Puts out less, and says that all is well. Where no length is told, the rest is zero.
    Short(Length),
    /// Says that what is there is this long, and puts out what it is: in bytes, or things in a list. It is said of lengths
    /// that are asked for, too.
    Long(u64),
    /// Ends the process by SIGSEGV.
    Segfault,
    /// Ends the process by `exit`.
    Exit(i32),
    /// Logs out of every token first (`C_Logout`).
    ForgetLogin,
    /// Closes every session first (`C_CloseAllSessions`).
    CloseSessions,
    /// The token is away. Sessions end with it.
    Vanish(Vanishing),
}

/// How much longer a call takes. What is drawn is the same for the same call of the same fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Between the two, each time as likely as the other; the same twice: that.
    Uniform(Duration, Duration),
    /// Exponentially distributed with this mean, at most ten times that.
    Exponential(Duration),
}

/// How long a short output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// One less: a byte, or a thing in a list.
    LessByOne,
    /// This many, if there are more.
    To(u32),
}

/// How a token is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vanishing {
    /// No slot has a token; what is asked of one says `CKR_TOKEN_NOT_PRESENT`.
    NotPresent,
    /// No slot has a token; what is asked of one says `CKR_DEVICE_REMOVED`.
    Removed,
    /// As with SoftHSM: sessions go on, no object is found, and no handle is valid. A process that has noticed finds
    /// nothing until `C_Finalize`, also after the token has come back.
    Quietly,
}

impl Kind {
    /// Whether it can do anything in this function.
    pub fn is_possible_in(&self, function: Function) -> bool {
        match self {
            Self::Corrupt { .. } => function.output() != Output::none,
            Self::Short(_) => !matches!(function.output(), Output::none | Output::fixed | Output::pair),
            Self::Long(_) => matches!(function.output(), Output::bytes | Output::list | Output::attributes),
            _ => true,
        }
    }

    /// Whether it changes what was put out, rather than whether and how.
    pub(crate) fn is_of_output(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Short(_) | Self::Long(_))
    }

    /// As it is written down.
    pub(crate) fn encode(self) -> [u64; 3] {
        match self {
            Self::Fail(code) => [1, code, 0],
            Self::FailDone(code) => [2, code, 0],
            Self::Hang(max) => [3, microseconds(max), 0],
            Self::Latency(Latency::Uniform(low, high)) => [4, microseconds(low), microseconds(high)],
            Self::Latency(Latency::Exponential(mean)) => [5, microseconds(mean), 0],
            Self::Corrupt { bit } => [6, bit, 0],
            Self::Short(Length::LessByOne) => [7, 0, 0],
            Self::Short(Length::To(length)) => [8, length.into(), 0],
            Self::Segfault => [9, 0, 0],
            Self::Exit(code) => [10, u64::from(code.cast_unsigned()), 0],
            Self::ForgetLogin => [11, 0, 0],
            Self::CloseSessions => [12, 0, 0],
            Self::Vanish(Vanishing::NotPresent) => [13, 0, 0],
            Self::Vanish(Vanishing::Removed) => [14, 0, 0],
            Self::Vanish(Vanishing::Quietly) => [15, 0, 0],
            Self::Long(length) => [16, length, 0],
        }
    }

    /// Reads what [`Kind::encode`] wrote; anything else is `None`.
    pub(crate) fn decode([code, a, b]: [u64; 3]) -> Option<Self> {
        let small = u32::try_from(a).ok();
        Some(match code {
            1 => Self::Fail(a),
            2 => Self::FailDone(a),
            3 => Self::Hang(Duration::from_micros(a)),
            4 => Self::Latency(Latency::Uniform(Duration::from_micros(a), Duration::from_micros(b))),
            5 => Self::Latency(Latency::Exponential(Duration::from_micros(a))),
            6 => Self::Corrupt { bit: a },
            7 => Self::Short(Length::LessByOne),
            8 => Self::Short(Length::To(small?)),
            9 => Self::Segfault,
            10 => Self::Exit(small?.cast_signed()),
            11 => Self::ForgetLogin,
            12 => Self::CloseSessions,
            13 => Self::Vanish(Vanishing::NotPresent),
            14 => Self::Vanish(Vanishing::Removed),
            15 => Self::Vanish(Vanishing::Quietly),
            16 => Self::Long(a),
            _ => return None,
        })
    }
}

impl Latency {
    /// How much it is in the call of this number.
    pub fn draw(self, number: u64) -> Duration {
        // Below 1, of 53 bits.
        let chance = (mixed(number) >> 11) as f64 / (1u64 << 53) as f64;
        match self {
            Self::Uniform(low, high) => low + high.saturating_sub(low).mul_f64(chance),
            Self::Exponential(mean) => mean.mul_f64((-(1.0 - chance).ln()).min(10.0)),
        }
    }
}

/// The end of splitmix64.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
