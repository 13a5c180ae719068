//! The numbers, as a table for people and as JSON for machines.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::CONNECTIONS;
use crate::ceilings::{Commits, Hmacs};
use crate::client::Http;
use crate::load::Measured;
use crate::machine::Description;

/// One load that was measured.
pub struct Point {
    what: &'static str,
    http: Http,
    connections: usize,
    requests: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    supervisor_us: f64,
    front_us: f64,
    custodians_us: f64,
    generator_us: f64,
}

impl Point {
    pub fn new(what: &'static str, http: Http, measured: Measured) -> Self {
        let requests = measured.latencies.len();
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / requests.max(1) as f64;
        let percentile = |percent: usize| {
            let place = (requests * percent / 100).min(requests.saturating_sub(1));
            measured.latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
        };
        Self {
            what,
            http,
            connections: measured.connections,
            requests,
            per_second: requests as f64 / measured.elapsed.as_secs_f64(),
            p50_us: percentile(50),
            p99_us: percentile(99),
            supervisor_us: each(measured.cpu.supervisor),
            front_us: each(measured.cpu.front),
            custodians_us: each(measured.cpu.custodians),
            generator_us: each(measured.cpu.generator),
        }
    }

    /// The same of something else.
    pub fn named(self, what: &'static str) -> Self {
        Self { what, ..self }
    }

    fn server_us(&self) -> f64 {
        self.supervisor_us + self.front_us + self.custodians_us
    }

    fn json(&self) -> Value {
        json!({
            "protocol": protocol(self.http),
            "connections": self.connections,
            "requests": self.requests,
            "per_second": self.per_second,
            "latency_us": { "p50": self.p50_us, "p99": self.p99_us },
            "cpu_us_per_request": {
                "supervisor": self.supervisor_us,
                "front": self.front_us,
                "custodians": self.custodians_us,
                "server": self.server_us(),
                "generator": self.generator_us,
            },
        })
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<9}{:>5}{:>10}{:>10.0}{:>9.0}{:>9.0}{:>11.1}{:>8.1}{:>11.1}{:>9.1}{:>10.1}",
            protocol(self.http),
            self.connections,
            self.requests,
            self.per_second,
            self.p50_us,
            self.p99_us,
            self.supervisor_us,
            self.front_us,
            self.custodians_us,
            self.server_us(),
            self.generator_us,
        )
    }
}

pub fn protocol(http: Http) -> &'static str {
    match http {
        Http::One => "HTTP/1.1",
        Http::Two => "HTTP/2",
    }
}

/// Everything one run measured.
pub struct Report {
    machine: Description,
    custodians: usize,
    points: Vec<Point>,
    pub hmacs: Vec<Hmacs>,
    pub commits: Vec<Commits>,
    /// What an entry of the log takes in the appliance's database.
    pub entry_bytes: f64,
}

impl Report {
    pub fn new(machine: Description, custodians: usize) -> Self {
        Self {
            machine,
            custodians,
            points: Vec::new(),
            hmacs: Vec::new(),
            commits: Vec::new(),
            entry_bytes: 0.0,
        }
    }

    pub fn add(&mut self, point: Point) {
        self.points.push(point);
    }

    fn of<'a>(&'a self, what: &'static str) -> impl Iterator<Item = &'a Point> {
        self.points.iter().filter(move |point| point.what == what)
    }

    /// Of preparations the one with the most requests: the others are too short to tell anything.
    fn longest<'a>(&'a self, what: &'static str) -> Option<&'a Point> {
        self.of(what).max_by_key(|point| point.requests)
    }

    pub fn json(&self) -> Value {
        let points = |what| self.of(what).map(Point::json).collect::<Vec<_>>();
        let machine: serde_json::Map<String, Value> =
            self.machine.iter().map(|(name, value)| (name.replace(' ', "_"), value.clone().into())).collect();
        json!({
            "machine": machine,
            "custodians": self.custodians,
            "verifications": points("verify"),
            "anchored_verifications": points("anchored"),
            "first_verifications": self.longest("first").map(Point::json),
            "enrolments": self.longest("enrol").map(Point::json),
            "ceilings": {
                "not_found": points("nothing"),
                "c_sign_hmac_sha1": self.hmacs.iter().map(|hmacs| json!({
                    "processes": hmacs.processes,
                    "per_second": hmacs.per_second,
                    "cpu_us": hmacs.cpu_us,
                })).collect::<Vec<_>>(),
                "commits": self.commits.iter().map(|commits| json!({
                    "callers": commits.callers,
                    "per_second": commits.per_second,
                    "cpu_us": commits.cpu_us,
                    "bytes_per_commit": commits.bytes,
                    "writer_us_per_commit": commits.writer_us,
                    "log_us_per_commit": commits.log_us,
                    "append_fdatasync_per_second": commits.syncs_per_second,
                })).collect::<Vec<_>>(),
            },
            "log_bytes_per_entry": self.entry_bytes,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.machine {
            writeln!(f, "{name:<12}{value}")?;
        }
        writeln!(f, "{:<12}{}", "custodians", self.custodians)?;
        let mut table = |title: &str, points: &mut dyn Iterator<Item = &Point>| {
            let mut points = points.peekable();
            if points.peek().is_none() {
                return Ok(());
            }
            writeln!(f, "\n{title}")?;
            writeln!(f, "{:>53}{:>49}", "latency in us", "CPU in us a request")?;
            writeln!(
                f,
                "{:<9}{:>5}{:>10}{:>10}{:>9}{:>9}{:>11}{:>8}{:>11}{:>9}{:>10}",
                "",
                "conns",
                "requests",
                "a second",
                "p50",
                "p99",
                "supervisor",
                "front",
                "custodians",
                "server",
                "generator"
            )?;
            points.try_for_each(|point| write!(f, "{point}"))
        };
        table("Durable TOTP verifications over mutual TLS", &mut self.of("verify"))?;
        table(
            "The same, each answer after an anchor that covers it: [audit] anchor = \"every_commit\"",
            &mut self.of("anchored"),
        )?;
        table(
            "The first verification of a credential: its secret is unwrapped too",
            &mut self.longest("first").into_iter(),
        )?;
        table("Enrolments with a given seed", &mut self.longest("enrol").into_iter())?;
        table("Ceiling: the same server, a path that is not there", &mut self.of("nothing"))?;
        for (anchored, free) in self.of("anchored").zip(self.of("verify")) {
            if anchored.connections == CONNECTIONS[0] {
                writeln!(f, "\nWith an anchor for each answer, as a share of without")?;
            }
            writeln!(
                f,
                "{:<9}{:>5} conns: {:>5.1} % of the verifications, p50 {:>5.1} times, p99 {:>5.1} times",
                protocol(free.http),
                free.connections,
                100.0 * anchored.per_second / free.per_second,
                anchored.p50_us / free.p50_us,
                anchored.p99_us / free.p99_us,
            )?;
        }
        if !self.hmacs.is_empty() {
            writeln!(
                f,
                "\nCeiling: C_Sign, HMAC-SHA-1 on a session object (a verification takes two or more)"
            )?;
        }
        for hmacs in &self.hmacs {
            let Hmacs { processes, per_second, cpu_us } = hmacs;
            writeln!(f, "{processes:>3} processes {per_second:>9.0} a second  {cpu_us:>6.1} us CPU each")?;
        }
        if !self.commits.is_empty() {
            writeln!(
                f,
                "\nCeiling: durable commits, the store alone; and a plain append of as much with fdatasync"
            )?;
        }
        for commits in &self.commits {
            let Commits { callers, per_second, cpu_us, bytes, syncs_per_second, .. } = commits;
            writeln!(
                f,
                "{callers:>3} callers {per_second:>9.0} commits a second {cpu_us:>7.1} us CPU and {bytes:>6.0} bytes \
                 each; {syncs_per_second:>7.0} fdatasyncs a second of {callers} times as much",
            )?;
        }
        if !self.commits.is_empty() {
            writeln!(
                f,
                "\nThe log's part of it: an entry is hashed and inserted with each commit, in its transaction"
            )?;
        }
        for commits in &self.commits {
            let Commits { callers, writer_us, log_us, .. } = commits;
            writeln!(
                f,
                "{callers:>3} callers {log_us:>9.1} us of the writer's {writer_us:>7.1} us a commit: {:>4.1} %",
                100.0 * log_us / writer_us,
            )?;
        }
        if self.entry_bytes == 0.0 {
            return Ok(());
        }
        writeln!(f, "{:>13.0} bytes an entry in the appliance's database, with its indices", self.entry_bytes)
    }
}
