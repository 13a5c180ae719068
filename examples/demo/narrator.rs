//! The transcript: what is asked, what comes back, and whether it is what was expected.

use std::io::{IsTerminal, Write, stdout};
use std::time::Instant;

use serde_json::Value;

use crate::{Outcome, words};

/// Tells what happens, and whether it is what was expected.
pub struct Narrator {
    begun: Instant,
    bold: (&'static str, &'static str),
    headings: u32,
    checks: u32,
    requests: u32,
    /// Said before what comes next of it.
    step: Option<String>,
}

impl Narrator {
    pub fn new() -> Self {
        let bold = if stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        Self { begun: Instant::now(), bold, headings: 0, checks: 0, requests: 0, step: None }
    }

    fn line(&self, line: &str) -> Outcome {
        writeln!(stdout().lock(), "{line}").map_err(words)
    }

    pub fn heading(&mut self, title: &str) -> Outcome {
        self.headings += 1;
        let (on, off) = self.bold;
        self.line(&format!("\n{on}{}. {title}{off}", self.headings))
    }

    /// A paragraph behind `prefix`, its lines broken at 100 characters.
    fn paragraph(&self, prefix: &str, text: &str) -> Outcome {
        let mut line = prefix.to_owned();
        for word in text.split_whitespace() {
            if line.len() + word.len() >= 100 {
                self.line(&line)?;
                line = " ".repeat(prefix.len());
            }
            line = format!("{line} {word}");
        }
        self.line(&line)
    }

    pub fn text(&self, text: &str) -> Outcome {
        self.paragraph(" ", text)
    }

    pub fn note(&self, text: &str) -> Outcome {
        self.paragraph(" ", text)
    }

    pub fn row(&mut self, left: &str, right: &str) -> Outcome {
        self.begin_step()?;
        self.line(&format!("    {left}  {right}"))
    }

    pub fn step(&mut self, what: &str) {
        self.step = Some(what.to_owned());
    }

    fn begin_step(&mut self) -> Outcome {
        match self.step.take() {
            Some(step) => {
                self.line("")?;
                self.paragraph("  -", &step)
            }
            None => Ok(()),
        }
    }

    pub fn asked(&mut self, who: &str, method: &str, path: &str, body: Option<&Value>) -> Outcome {
        self.requests += 1;
        self.begin_step()?;
        let (path, body) = (short_ids(path), body.map(told).unwrap_or_default());
        self.paragraph(&format!("    {who} -> appliance  "), &format!("{method} {path} {body}"))
    }

    /// Status and body, without what only the next program needs.
    pub fn answered(&self, who: &str, status: u16, json: &Value) -> Outcome {
        let told = [
            "id",
            "type",
            "field",
            "reason",
            "attempts_remaining",
            "retry_after",
            "verified",
            "account",
            "state",
            "transaction_state",
            "entered",
            "epoch",
            "acknowledged",
            "failures",
            "counter",
            "use",
            "openapi",
        ];
        let mut fields: Vec<String> = told
            .iter()
            .filter_map(|name| json.get(name).map(|value| format!("{name}: {}", short(value))))
            .collect();
        if let Some(uri) = json["otpauth"].as_str() {
            fields.push(format!("otpauth: {}", abridged(uri, "secret=", 2)));
        }
        self.line(&format!("    appliance -> {who}   {status} {{ {} }}", fields.join(", ")))
    }

    /// Status and what is no JSON.
    pub fn received(&self, who: &str, status: u16, what: &str) -> Outcome {
        self.line(&format!("    appliance -> {who}   {status} {what}"))
    }

    /// Lines as they are.
    pub fn picture(&self, picture: &str) -> Outcome {
        self.line(&format!("\n{picture}\n"))
    }

    /// Which process did what, and which secret it touched.
    pub fn inside(&self, text: &str) -> Outcome {
        self.paragraph("      inside:", text)
    }

    pub fn check(&mut self, what: &str, holds: bool) -> Outcome {
        if !holds {
            return Err(format!("NOT as told: {what}"));
        }
        self.begin_step()?;
        self.checks += 1;
        self.line(&format!("      ok: {what}"))
    }

    pub fn summary(&self) -> Outcome {
        let (on, off) = self.bold;
        self.line(&format!(
            "\n{on}All as told: {} requests, {} checks, {:.1} s.{off}",
            self.requests,
            self.checks,
            self.begun.elapsed().as_secs_f32()
        ))
    }
}

/// A body, with the beginnings of what is long, and without PINs.
fn told(body: &Value) -> String {
    fn member((name, value): (&String, &Value)) -> String {
        let value = match value {
            Value::Object(members) => {
                format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(", "))
            }
            _ if name == "pin" => "\"...\"".to_owned(),
            Value::String(text) if text.len() > 36 => format!("\"{}...\"", text.get(..8).unwrap_or_default()),
            _ => short_ids(&value.to_string()),
        };
        format!("\"{name}\": {value}")
    }
    let members = body.as_object().map(|members| members.iter().map(member).collect::<Vec<_>>());
    format!("{{{}}}", members.unwrap_or_default().join(", "))
}

/// A value's text; of a problem's type its name.
fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = text.strip_prefix("urn:hsm-authd:problem:").unwrap_or(&text);
    short_ids(text)
}

fn short_ids(text: &str) -> String {
    ["cred_", "txn_", "pres_"].iter().fold(text.to_owned(), |text, mark| abridged(&text, mark, 4))
}

/// `text` with only so many characters of each word that follows `mark`.
fn abridged(text: &str, mark: &str, shown: usize) -> String {
    let Some((before, rest)) = text.split_once(mark) else { return text.to_owned() };
    let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    let (word, after) = rest.split_at(length);
    let after = abridged(after, mark, shown);
    format!("{before}{mark}{}...{after}", word.get(..shown).unwrap_or(word))
}
