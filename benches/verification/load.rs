//! The load: connections that each ask one thing after the other, in as few threads as will do.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha1::Sha1;

use crate::appliance::{Appliance, CpuTime};
use crate::client::{Http, Identity};
use crate::wire::{Answer, Ask, Target, Wire};
use crate::{Outcome, words};

/// The longest the API takes, with the largest skew: most codes are right at once.
const PERIOD_S: u64 = 600;
const SKEW_STEPS: u64 = 2;
/// The generator's threads: half the cores of a small machine, and never many.
const THREADS_MAX: usize = 2;

/// A credential whose codes this program knows.
pub struct Credential {
    path: String,
    seed: [u8; 20],
    next_step: u64,
}

impl Credential {
    /// The next code that is right and was not used, if there is one.
    fn next_code(&mut self) -> Option<String> {
        let present = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() / PERIOD_S;
        // Not the first that is right: the server may read its clock just after a step.
        let step = self.next_step.max(present - SKEW_STEPS + 1);
        if step > present + SKEW_STEPS {
            return None;
        }
        self.next_step = step + 1;
        let mac = Hmac::<Sha1>::new_from_slice(&self.seed).ok()?.chain_update(step.to_be_bytes()).finalize();
        let mac = mac.into_bytes();
        let offset = usize::from(mac[19] & 15);
        let number = mac[offset..offset + 4].iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        // With six digits one of a million is that of the step before, and refused as used.
        Some(format!("{:08}", (number & 0x7fff_ffff) % 100_000_000))
    }
}

/// What one connection does.
pub enum Work {
    /// Enrols credentials of these numbers.
    Enrol { numbers: Range<usize>, enrolled: Vec<Credential> },
    /// Verifies codes, each credential's in turn.
    Verify { credentials: Vec<Credential>, next: usize, end: usize },
    /// Asks for what is not there.
    Nothing,
}

impl Work {
    pub fn enrol(numbers: Range<usize>) -> Self {
        Self::Enrol { numbers, enrolled: Vec::new() }
    }

    /// Until the codes are used up.
    pub fn verify(credentials: Vec<Credential>) -> Self {
        Self::Verify { credentials, next: 0, end: usize::MAX }
    }

    /// One code of each credential.
    pub fn verify_each_once(credentials: Vec<Credential>) -> Self {
        Self::Verify { end: credentials.len(), credentials, next: 0 }
    }

    pub fn into_credentials(self) -> Vec<Credential> {
        match self {
            Self::Enrol { enrolled, .. } => enrolled,
            Self::Verify { credentials, .. } => credentials,
            Self::Nothing => Vec::new(),
        }
    }

    fn next(&mut self) -> Option<Ask> {
        match self {
            Self::Enrol { numbers, enrolled } => {
                let seed = seed(numbers.start + enrolled.len());
                let hex = data_encoding::HEXLOWER.encode(&seed);
                (numbers.start + enrolled.len() < numbers.end).then(|| Ask {
                    method: "POST",
                    path: "/v1/credentials".to_owned(),
                    body: format!(
                        r#"{{"type":"totp","account":"account-{}","seed_hex":"{hex}","digits":8,"period":{PERIOD_S},"skew_steps":{SKEW_STEPS}}}"#,
                        numbers.start + enrolled.len()
                    ),
                })
            }
            Self::Verify { credentials, next, end } => {
                if *next == *end {
                    return None;
                }
                let count = credentials.len();
                let credential = credentials.get_mut(*next % count.max(1))?;
                *next += 1;
                let otp = credential.next_code()?;
                Some(Ask {
                    method: "POST",
                    path: credential.path.clone(),
                    body: format!(r#"{{"otp":"{otp}"}}"#),
                })
            }
            Self::Nothing => Some(Ask { method: "GET", path: "/v1/nothing".to_owned(), body: String::new() }),
        }
    }

    fn take(&mut self, answer: &Answer) -> Outcome {
        let expected = match self {
            Self::Enrol { .. } => 201,
            Self::Verify { .. } => 200,
            Self::Nothing => 404,
        };
        if answer.status != expected {
            let body = String::from_utf8_lossy(&answer.body);
            return Err(format!("{} instead of {expected}: {body}", answer.status));
        }
        if let Self::Enrol { numbers, enrolled } = self {
            let body: Value = serde_json::from_slice(&answer.body).map_err(words)?;
            let id = body.get("id").and_then(Value::as_str).ok_or("an enrolment without an id")?;
            let seed = seed(numbers.start + enrolled.len());
            let path = format!("/v1/credentials/{id}/verify");
            enrolled.push(Credential { path, seed, next_step: 0 });
        }
        Ok(())
    }
}

/// Each credential has its own.
fn seed(number: usize) -> [u8; 20] {
    let mut seed = *b"bench seed 123456789";
    seed[12..].copy_from_slice(&(number as u64).to_be_bytes());
    seed
}

/// What came of a load.
pub struct Measured {
    pub connections: usize,
    pub elapsed: Duration,
    pub cpu: CpuTime,
    /// From the first byte sent to the last received, sorted.
    pub latencies: Vec<Duration>,
}

/// One connection's part.
struct Done {
    work: Work,
    latencies: Vec<Duration>,
}

/// Where the load comes from.
pub struct Generator<'a> {
    appliance: &'a Appliance,
    target: Target,
}

impl<'a> Generator<'a> {
    pub fn new(appliance: &'a Appliance) -> Outcome<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or("dev.json lacks a field");
        let info = &appliance.info;
        let client = &info["clients"]["bank-a"];
        let identity = Identity::new(text(&info["ca"])?, text(&client["cert"])?, text(&client["key"])?);
        Ok(Self { appliance, target: Target::new(&text(&info["url"])?, &identity)? })
    }

    /// Does all works at once, each on a connection of its own, until the first has nothing left to do or the
    /// time is up; without a time, until all are done. Connections are opened before that begins.
    pub fn run(
        &self,
        http: Http,
        works: Vec<Work>,
        time: Option<Duration>,
    ) -> Outcome<(Measured, Vec<Work>)> {
        let connections = works.len();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = THREADS_MAX.min(cores.div_ceil(2)).min(connections);
        let mut hands: Vec<Vec<Work>> = (0..threads).map(|_| Vec::new()).collect();
        for (number, work) in works.into_iter().enumerate() {
            hands[number % threads].push(work);
        }
        let begin = Arc::new(Barrier::new(threads + 1));
        let stop = Arc::new(AtomicBool::new(false));
        let (over, is_over) = mpsc::channel();
        let threads: Vec<_> = hands
            .into_iter()
            .map(|works| {
                let (target, begin, stop, over) =
                    (self.target.clone(), begin.clone(), stop.clone(), over.clone());
                std::thread::spawn(move || thread(&target, http, works, &begin, &stop, &over))
            })
            .collect();
        drop(over);

        begin.wait();
        let (cpu, since) = (self.appliance.cpu_time()?, Instant::now());
        match time {
            // Both ways of ending, too early included, are right.
            Some(time) => drop(is_over.recv_timeout(time)),
            None => while is_over.recv().is_ok() {},
        }
        let (elapsed, cpu) = (since.elapsed(), self.appliance.cpu_time()?.since(cpu));
        stop.store(true, Ordering::Relaxed);

        let (mut works, mut latencies) = (Vec::new(), Vec::new());
        for thread in threads {
            for done in thread.join().map_err(|_| "a thread of the generator panicked")?? {
                works.push(done.work);
                latencies.extend(done.latencies);
            }
        }
        latencies.sort_unstable();
        Ok((Measured { connections, elapsed, cpu, latencies }, works))
    }
}

/// One thread's connections. `over` tells that one of them has nothing left to do, and is dropped with the last.
fn thread(
    target: &Target,
    http: Http,
    works: Vec<Work>,
    begin: &Barrier,
    stop: &Arc<AtomicBool>,
    over: &mpsc::Sender<()>,
) -> Outcome<Vec<Done>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(words)?;
    runtime.block_on(async {
        let mut wires = Ok(Vec::new());
        for _ in 0..works.len() {
            match (Wire::open(target, http).await, &mut wires) {
                (Ok(wire), Ok(wires)) => wires.push(wire),
                (Err(error), _) => wires = Err(error),
                (Ok(_), Err(_)) => {}
            }
        }
        // Also if a connection failed: the others wait here.
        begin.wait();
        let tasks: Vec<_> = works
            .into_iter()
            .zip(wires?)
            .map(|(work, wire)| tokio::spawn(connection(wire, work, stop.clone(), over.clone())))
            .collect();
        let mut done = Vec::new();
        for task in tasks {
            done.push(task.await.map_err(words)??);
        }
        Ok(done)
    })
}

async fn connection(
    mut wire: Wire,
    mut work: Work,
    stop: Arc<AtomicBool>,
    over: mpsc::Sender<()>,
) -> Outcome<Done> {
    let mut latencies = Vec::new();
    let worked = async {
        while let Some(ask) = work.next() {
            let since = Instant::now();
            let answer = wire.ask(ask).await?;
            let latency = since.elapsed();
            if stop.load(Ordering::Relaxed) {
                // It came after the time was up.
                return Ok(());
            }
            work.take(&answer)?;
            latencies.push(latency);
        }
        Ok(())
    };
    let worked: Outcome = worked.await;
    // Nobody listens once the time is up.
    let _ = over.send(());
    worked.map(|()| Done { work, latencies })
}
