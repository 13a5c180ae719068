//! A custodian's start as the front sees it: what it says until it is up, and how long it may be silent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::messages::{
    BUILD_ID, DownCause, Greeting, Hello, PinFile, StartFailed, Step, decode, frame_length,
};
use crate::metrics::Away;

/// How long a start may say nothing, at least. A module may never come back from a call that the HSM's fault has caught,
/// and the service is to be there 5 s after the fault's end: this, a pause of 1 s ([`crate::supervisor`]'s), and a start.
const SILENCE_MIN: Duration = Duration::from_millis(2_500);
/// And at most: some modules try for long to reach their HSM before they say that they cannot.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// It may be silent so many times as long as the longest silence of the last that came up: an HSM may be slow.
const SLOWER: u32 = 3;
/// The last of so many in a row that were silent for too long may be so for [`SILENCE_MAX`]: an HSM may have become
/// slow. In an outage of less than half a minute none comes to that.
const PATIENT_EVERY: u32 = 10;

/// Why a custodian did not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub cause: Away,
    pub line: String,
    /// What the next start has to know of it.
    pub failed: Option<StartFailed>,
}

impl Refusal {
    pub fn new(cause: Away, line: impl Into<String>) -> Self {
        Self { cause, line: line.into(), failed: None }
    }

    /// With a PIN that may have been refused.
    fn with_doubt(self, doubt: Option<PinFile>) -> Self {
        let Some(file) = doubt else { return self };
        let Self { cause, line, .. } = self;
        let line = format!(
            "{line}; its PIN may have been refused, so the same PIN file is tried once more at most, and then not before it \
             is another one"
        );
        Self { cause, line, failed: Some(StartFailed::PinInDoubt(file)) }
    }
}

/// What earlier starts were like.
#[derive(Default)]
pub(super) struct Starts(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// How long the last that came up was silent; `None`: none has.
    silence: Option<Silence>,
    /// With which PIN it logged in.
    accepted: Option<PinFile>,
    /// So many since were silent for too long.
    cut_off: u32,
}

/// The longest silences of a start.
#[derive(Clone, Copy, Default)]
struct Silence {
    /// Until it is logged in: it may have reached nobody.
    reaching: Duration,
    /// From then on: what is silent there may have much to read.
    reading: Duration,
}

impl Silence {
    fn of(&mut self, step: Option<Step>) -> &mut Duration {
        match step {
            None | Some(Step::Module | Step::Token | Step::Login(_)) => &mut self.reaching,
            Some(Step::Abilities | Step::Keys | Step::Secrets | Step::SelfTest) => &mut self.reading,
        }
    }
}

impl Starts {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a custodian is up.
    ///
    /// # Errors
    /// Why it does not come up.
    pub async fn greet(&self, stream: &mut UnixStream) -> Result<Hello, Refusal> {
        let (mut step, mut pin_file, mut silence) = (None, None, Silence::default());
        loop {
            let begun = Instant::now();
            let silence_max = self.known().silence_max(step);
            let Ok(greeting) = timeout(silence_max, read(stream)).await else {
                let doubt = self.known().cut_off(step, silence_max);
                return Err(hangs(step, silence_max).with_doubt(doubt));
            };
            let longest = silence.of(step);
            *longest = begun.elapsed().max(*longest);
            let greeting = greeting
                .map_err(|line| Refusal::new(Away::Died, line).with_doubt(self.known().doubt(step)))?;
            match greeting {
                Greeting::Starting(next) => {
                    match next {
                        Step::Login(file) => pin_file = Some(file),
                        // It has come further: the PIN is right.
                        Step::Abilities | Step::Keys | Step::Secrets | Step::SelfTest => {
                            self.known().accepted = pin_file;
                        }
                        Step::Module | Step::Token => {}
                    }
                    step = Some(next);
                }
                Greeting::Up(hello) if hello.build_id == BUILD_ID => {
                    *self.known() = Known { silence: Some(silence), accepted: pin_file, cut_off: 0 };
                    return Ok(hello);
                }
                Greeting::Up(Hello { build_id, .. }) => {
                    let line = format!("it is of build {build_id}, the front of {BUILD_ID}");
                    return Err(Refusal::new(Away::Died, line));
                }
                Greeting::Down(down) => {
                    let refusal = Refusal::new(cause(down.cause), down.line);
                    let failed = Some(StartFailed::Said { exit: down.exit, pin_file });
                    return Err(Refusal { failed, ..refusal });
                }
            }
        }
    }
}

impl Known {
    /// How long a start may be silent in this step; `None`: it has not said yet what it does.
    fn silence_max(&self, step: Option<Step>) -> Duration {
        let Some(mut silence) = self.silence else { return SILENCE_MAX };
        match step {
            // What is cut off may be told that the PIN is wrong a moment later, and would never know: each attempt counts.
            Some(Step::Login(file)) if self.accepted != Some(file) => SILENCE_MAX,
            _ if self.cut_off % PATIENT_EVERY == PATIENT_EVERY - 1 => SILENCE_MAX,
            _ => (*silence.of(step) * SLOWER).clamp(SILENCE_MIN, SILENCE_MAX),
        }
    }

    /// The PIN that may have been refused, if one ends in this step.
    fn doubt(&self, step: Option<Step>) -> Option<PinFile> {
        match step {
            Some(Step::Login(file)) if self.accepted != Some(file) => Some(file),
            _ => None,
        }
    }

    /// One was silent for too long. If it had reached the HSM, that has become slow: the next one has more time there. The
    /// PIN that may have been refused.
    fn cut_off(&mut self, step: Option<Step>, silence_max: Duration) -> Option<PinFile> {
        self.cut_off = self.cut_off.wrapping_add(1);
        let has_reached = matches!(step, Some(Step::Abilities | Step::Keys | Step::Secrets | Step::SelfTest));
        if let (Some(silence), true) = (&mut self.silence, has_reached) {
            silence.reading = silence_max;
        }
        self.doubt(step)
    }
}

async fn read(stream: &mut UnixStream) -> Result<Greeting, String> {
    let ended = |_| "it ended without a word".to_owned();
    let mut header = [0; 4];
    stream.read_exact(&mut header).await.map_err(ended)?;
    let mut body = vec![0; frame_length(header).map_err(|e| e.to_string())?];
    stream.read_exact(&mut body).await.map_err(ended)?;
    decode(&body).map_err(|e| e.to_string())
}

fn hangs(step: Option<Step>, silence: Duration) -> Refusal {
    let line = match step {
        Some(step) => format!("the HSM does not answer for {} s while {step}", silence.as_secs_f32()),
        None => format!("a custodian says nothing for {} s", silence.as_secs_f32()),
    };
    Refusal::new(Away::Hangs, line)
}

fn cause(cause: DownCause) -> Away {
    match cause {
        DownCause::Configuration => Away::Configuration,
        DownCause::Module => Away::Module,
        DownCause::TokenAway => Away::TokenAway,
        DownCause::Login => Away::Login,
        DownCause::PinRefused => Away::PinRefused,
        DownCause::Keys => Away::Keys,
        DownCause::SelfTest => Away::SelfTest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: PinFile = PinFile { inode: 7, modified_unix_s: 1, modified_ns: 2 };

    fn known(silence_ms: u64, cut_off: u32) -> Known {
        let silence = Duration::from_millis(silence_ms);
        let silence = Silence { reaching: silence, reading: silence };
        Known { silence: Some(silence), accepted: Some(PIN), cut_off }
    }

    #[test]
    fn a_start_may_be_silent_as_long_as_starts_are_slow_there() {
        let of = |silence_ms| known(silence_ms, 0).silence_max(Some(Step::Module));
        assert_eq!([of(20), of(2_000), of(60_000)], [SILENCE_MIN, Duration::from_secs(6), SILENCE_MAX]);
        assert_eq!(Known::default().silence_max(None), SILENCE_MAX, "nothing is known yet");
    }

    #[test]
    fn of_starts_that_are_cut_off_one_in_ten_has_time() {
        let patient = |cut_off| known(20, cut_off).silence_max(None) == SILENCE_MAX;
        let numbers: Vec<_> = (0..30).filter(|cut_off| patient(*cut_off)).collect();
        assert_eq!(numbers, [9, 19, 29]);
    }

    #[test]
    fn one_that_was_cut_off_while_it_read_leaves_its_successor_more_time_for_that_and_no_other() {
        let mut known = known(20, 0);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let silence_max = known.silence_max(Some(Step::Keys));
            seen.push(silence_max.as_millis());
            known.cut_off(Some(Step::Keys), silence_max);
            assert_eq!(known.silence_max(Some(Step::Module)), SILENCE_MIN);
        }
        assert_eq!(seen, [2_500, 7_500, 22_500, 30_000]);
    }

    #[test]
    fn nobody_who_tries_a_pin_that_was_not_accepted_is_cut_off() {
        let login = |file| known(20, 0).silence_max(Some(Step::Login(file)));
        assert_eq!(login(PIN), SILENCE_MIN);
        for other in [
            PinFile { inode: 8, ..PIN },
            PinFile { modified_unix_s: 2, ..PIN },
            PinFile { modified_ns: 3, ..PIN },
        ] {
            assert_eq!(login(other), SILENCE_MAX, "{other:?}");
        }
    }

    async fn said(starts: &Starts, greetings: &[Greeting]) -> Result<Hello, Refusal> {
        use tokio::io::AsyncWriteExt;
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        for greeting in greetings {
            theirs.write_all(&super::super::messages::encode(greeting).unwrap()).await.unwrap();
        }
        let greeted = starts.greet(&mut ours).await;
        drop(theirs);
        greeted
    }

    fn up() -> Greeting {
        let (build_id, token) = (BUILD_ID.to_owned(), "a test's".to_owned());
        Greeting::Up(Hello {
            build_id,
            token,
            newest: Default::default(),
            shared: Vec::new(),
            tls: Vec::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_hangs_is_given_up_soon_once_one_came_up() {
        let starts = Starts::default();
        let login = Greeting::Starting(Step::Login(PIN));
        let hang = async |greetings: &[Greeting]| {
            let begun = Instant::now();
            let refusal = said(&starts, greetings).await.unwrap_err();
            assert_eq!(refusal.cause, Away::Hangs);
            (begun.elapsed().as_millis(), refusal.line)
        };
        let (ms, line) = hang(std::slice::from_ref(&login)).await;
        assert!(ms.abs_diff(30_000) < 10, "{ms}");
        assert!(
            line.starts_with("the HSM does not answer for 30 s while the user is logged in; its PIN may"),
            "{line}"
        );

        said(&starts, &[login.clone(), up()]).await.unwrap();
        for greetings in [&[login][..], &[Greeting::Starting(Step::Module)], &[]] {
            let (ms, line) = hang(greetings).await;
            assert!(ms.abs_diff(2_500) < 10, "{ms}: {line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_goes_on_has_as_long_as_it_takes() {
        use tokio::io::AsyncWriteExt;
        let starts = Starts::default();
        said(&starts, &[up()]).await.unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let going_on = tokio::spawn(async move {
            for greeting in std::iter::repeat_n(Greeting::Starting(Step::Secrets), 30).chain([up()]) {
                tokio::time::sleep(SILENCE_MIN - Duration::from_millis(100)).await;
                theirs.write_all(&super::super::messages::encode(&greeting).unwrap()).await.unwrap();
            }
            theirs
        });
        let begun = Instant::now();
        starts.greet(&mut ours).await.unwrap();
        assert!(begun.elapsed() > Duration::from_secs(60));
        drop(going_on.await.unwrap());
    }
}
