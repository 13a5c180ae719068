//! `examples/terminal/terminal.py`: what a user's terminal computes, by a program that shares no code with the
//! appliance.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::narrator::Narrator;
use crate::{Outcome, words};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/terminal/terminal.py");

/// One process that answers many requests. Killed on drop.
pub struct Script {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Script {
    pub fn start() -> Outcome<Self> {
        let mut child = Command::new("python3")
            .args([SCRIPT, "lines"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("python3: {error}"))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (requests, answers) = pipes.ok_or("python3 has no pipes")?;
        Ok(Self { child, requests, answers: BufReader::new(answers) })
    }

    /// What it makes of a request. Secrets go through the pipe, and into no transcript.
    pub fn ask(&mut self, narrator: &mut Narrator, command: &str, mut request: Value) -> Outcome<Value> {
        narrator.row("terminal.py:", command)?;
        request["do"] = command.into();
        writeln!(self.requests, "{request}").map_err(words)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(words)?;
        let answer: Value = serde_json::from_str(&line).map_err(|_| format!("terminal.py said {line:?}"))?;
        match answer["error"].as_str() {
            Some(reason) => Err(format!("terminal.py {command}: {reason}")),
            None => Ok(answer),
        }
    }

    /// One text of its answer.
    pub fn text(
        &mut self,
        narrator: &mut Narrator,
        command: &str,
        request: Value,
        name: &str,
    ) -> Outcome<String> {
        let answer = self.ask(narrator, command, request)?;
        answer[name].as_str().map(str::to_owned).ok_or_else(|| format!("terminal.py {command}: no {name}"))
    }

    /// The claims of an attestation name the transaction that was approved: its bytes, made again, have its digest.
    pub fn agrees(&mut self, narrator: &mut Narrator, attestation: &str, digest: &Value) -> Outcome {
        let told = self.ask(narrator, "attestation", json!({ "attestation": attestation }))?;
        narrator.check("the attestation is of these bytes, and no others", told["digest"] == *digest)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
