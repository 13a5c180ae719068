//! Seed A: a trading platform, two users with OCRA tokens, and transactions that commit to the one before. The steps
//! S1 to S11 are those of the seed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::appliance::Appliance;
use crate::narrator::Narrator;
use crate::terms::Terms;
use crate::transaction::Transaction;
use crate::{Bank, Outcome, ocra, qr, words};

/// The factory's seeds of the two tokens.
pub const SEEDS: [&[u8]; 2] = [b"seed of ada's token, 32 bytes at", b"seed of ben's token, 32 bytes at"];
/// Where the pictures stay, to be looked at.
pub const PICTURES: &str = "target/demo";

/// A token as its user holds it, and the credential that the bank enrolled for it.
pub struct Holder {
    pub account: &'static str,
    pub id: String,
    suite: &'static str,
    seed: &'static [u8],
    /// Of a suite with C.
    next: Option<u64>,
}

impl Holder {
    async fn enrol(
        narrator: &mut Narrator,
        bank: &Bank,
        account: &'static str,
        suite: &'static str,
        seed: &'static [u8],
    ) -> Outcome<Self> {
        narrator.step(&format!("enrol {account}'s token, {suite}"));
        let seed_hex = HEXLOWER.encode(seed);
        let body = json!({ "type": "ocra", "account": account, "suite": suite, "seed_hex": seed_hex });
        let answer = bank.post(narrator, "/v1/credentials", &body).await?;
        answer.is(narrator, 201, "enrolled, for transactions alone")?;
        let next = suite.contains(":C-").then_some(0);
        Ok(Self { account, id: answer.id()?, suite, seed, next })
    }

    /// What the token makes of the question about these terms: it derives that itself, from the bytes.
    pub fn code(&mut self, terms: &Terms) -> Outcome<String> {
        let counter = self.next.map(|next| next.to_be_bytes().to_vec()).unwrap_or_default();
        self.next = self.next.map(|next| next + 1);
        ocra::code(self.suite, self.seed, &counter, &terms.question(), &[])
    }

    /// The user reads, and types what the token shows.
    async fn approve(&mut self, narrator: &mut Narrator, bank: &Bank, leg: &Transaction) -> Outcome<String> {
        let asked = leg.json["challenge"]["question"].as_str().unwrap_or_default();
        leg.terms.show(narrator, &format!("{}'s token", self.account))?;
        narrator.check(
            &format!(
                "its question, made of these terms, is the appliance's: {}...",
                asked.get(..8).unwrap_or("")
            ),
            !asked.is_empty() && asked == leg.terms.question(),
        )?;
        let code = self.code(&leg.terms)?;
        let answer = bank.respond_code(narrator, &leg.id, &code).await?;
        answer.is_approved(narrator)
    }
}

/// What is left of the trade.
pub struct Exchange {
    pub ada: Holder,
    /// The first leg.
    pub listing: Transaction,
    /// Its attestation.
    pub attestation: String,
    offline: Offline,
}

/// The three legs.
pub async fn trade(narrator: &mut Narrator, bank: &Bank, appliance: &Appliance) -> Outcome<Exchange> {
    narrator.heading("A trade of two users (challenge_response): the first one's listing")?;
    narrator.text(
        "Ada sells euros on a platform, Ben buys them for dollars. Each approves with a token that answers a \
         question derived from the whole transaction. Ben's leg commits to Ada's.",
    )?;
    let mut ada = Holder::enrol(narrator, bank, "ada", "OCRA-1:HOTP-SHA256-8:QH40", SEEDS[0]).await?;
    let mut ben = Holder::enrol(narrator, bank, "ben", "OCRA-1:HOTP-SHA256-8:C-QH40", SEEDS[1]).await?;

    narrator.step("S1: the platform sends Ada's listing; the appliance makes the challenge of it");
    let body = json!({ "method": "challenge_response", "credential": ada.id, "payee": "fx", "amount": "250.00",
        "currency": "EUR", "order": "EUR for USD", "platform": "fx", "remark": "today only" });
    let listing = bank.open(narrator, &body).await?;
    narrator.step("S2, S3: Ada's token makes the dynamic password, the platform hands it on");
    let first = ada.approve(narrator, bank, &listing).await?;
    narrator.inside(
        "S4: the HSM computed the code. Its session also signed the attestation, before anybody was told; code, \
         state and attestation are one commit.",
    )?;
    let offline = Offline::fetch(narrator, bank, appliance).await?;
    let claims = offline.verify(&first)?.map_err(|reason| format!("NOT as told: {reason}"))?;
    narrator.check("offline_verification, without the appliance, believes the attestation", true)?;
    narrator.check(
        "it names Ada, the platform, her remark and the demand",
        claims["account"] == "ada"
            && claims["transaction"]["platform"] == "fx"
            && claims["transaction"]["remark"] == "today only"
            && claims["transaction"]["order"] == "EUR for USD",
    )?;

    narrator.step("S5: the attestation as a QR code");
    let picture = draw(narrator, bank, &listing, "listing").await?;
    match qr::terminal(&first) {
        Some(drawn) => {
            narrator.note("  A camera reads it from a dark terminal, or from the file:")?;
            narrator.picture(&drawn)?;
        }
        None => narrator.note("(It is wider than this transcript.)")?,
    }

    narrator.heading("The second user's leg commits to the first")?;
    narrator.step("S6: Ben scans the code, and the platform asks whether it is real");
    let scanned = match qr::scanned(&picture)? {
        Some(text) => {
            narrator.check("zbarimg reads the attestation in the picture, byte for byte", text == first)?;
            text
        }
        None => {
            narrator.note("(There is no zbarimg here: Ben's platform gets the text.)")?;
            first.clone()
        }
    };
    let answer = bank.post(narrator, "/v1/attestations/verify", &json!({ "attestation": scanned })).await?;
    answer.is(narrator, 200, "the appliance's own key signed it, and it holds still")?;
    narrator.check("the claims are what was verified offline", answer.json == claims)?;

    narrator.step("S7: the platform sends Ben's demand with Ada's attestation as its parent");
    let body = json!({ "method": "challenge_response", "credential": ben.id, "payee": "ada", "amount": "270.00",
        "currency": "USD", "order": "USD for EUR", "platform": "fx", "parent": scanned });
    let leg = bank.open(narrator, &body).await?;
    let (own, parent) = (&leg.json, &leg.json["parent"]["transaction"]);
    narrator.row(
        "Ben sees:",
        &format!(
            "{} gives {} {} (\"{}\") on {}; {} gives {} {} (\"{}\")",
            text(&parent["payer"]),
            text(&parent["amount"]),
            text(&parent["currency"]),
            text(&parent["order"]),
            text(&own["platform"]),
            text(&own["payer"]),
            text(&own["amount"]),
            text(&own["currency"]),
            text(&own["order"]),
        ),
    )?;
    narrator.check(
        "both users, the platform and both demands are there",
        [&parent["payer"], &parent["platform"], &parent["order"]] == ["ada", "fx", "EUR for USD"]
            && [&own["payer"], &own["platform"], &own["order"]] == ["ben", "fx", "USD for EUR"],
    )?;
    let hash = HEXLOWER.encode(&Sha256::digest(&first));
    narrator
        .check("the bytes that Ben approves hold the hash of Ada's", leg.terms.get("parent_hash") == hash)?;
    narrator.step("S8, S9, S10: Ben's token and its check, likewise");
    let second = ben.approve(narrator, bank, &leg).await?;
    let claims = offline.verify(&second)?.map_err(|reason| format!("NOT as told: {reason}"))?;
    narrator.check(
        "its attestation, verified offline, names Ada's",
        claims["parent"] == json!({ "jti": listing.id, "hash": hash }),
    )?;
    narrator.step("S11: its QR code");
    draw(narrator, bank, &leg, "answer").await?;

    narrator.heading("A third leg commits to both")?;
    narrator.step("Ada confirms the settlement, with Ben's attestation as the parent");
    let body = json!({ "method": "challenge_response", "credential": ada.id, "payee": "ben", "amount": "250.00",
        "currency": "EUR", "order": "settle EUR for USD", "platform": "fx", "parent": second });
    let settlement = bank.open(narrator, &body).await?;
    let third = ada.approve(narrator, bank, &settlement).await?;
    let claims = offline.verify(&third)?.map_err(|reason| format!("NOT as told: {reason}"))?;
    narrator.check(
        "who has the three attestations can prove the whole chain offline",
        claims["parent"]["jti"] == leg.id
            && claims["parent"]["hash"] == HEXLOWER.encode(&Sha256::digest(&second)),
    )?;
    Ok(Exchange { ada, listing, attestation: first, offline })
}

impl Exchange {
    /// Why `attestation` is not to be relied on, by the program that asks nobody.
    pub fn refused_offline(&self, attestation: &str) -> Outcome<Option<String>> {
        Ok(self.offline.verify(attestation)?.err())
    }

    /// What an attestation claims, by the same program.
    pub fn claims_offline(&self, narrator: &mut Narrator, attestation: &str) -> Outcome<Value> {
        let claims = self.offline.verify(attestation)?.map_err(|reason| format!("NOT as told: {reason}"))?;
        narrator.check("offline_verification believes the attestation", true)?;
        Ok(claims)
    }

    /// After a restart.
    pub async fn is_remembered(&self, narrator: &mut Narrator, bank: &Bank) -> Outcome {
        narrator.step("the listing's attestation from before");
        let path = format!("/v1/transactions/{}/attestation", self.listing.id);
        let answer = bank.get(narrator, &path).await?;
        narrator.check("it is the same, byte for byte", answer.json["attestation"] == self.attestation)
    }
}

/// Both kinds of picture, into a folder that stays; the path of the PNG.
async fn draw(narrator: &mut Narrator, bank: &Bank, leg: &Transaction, name: &str) -> Outcome<PathBuf> {
    let folder = Path::new(PICTURES);
    fs::create_dir_all(folder).map_err(|error| format!("{PICTURES}: {error}"))?;
    for (kind, media_type) in [("svg", "image/svg+xml"), ("png", "image/png")] {
        let picture = bank.qr(narrator, &leg.id, media_type).await?;
        let path = folder.join(format!("{name}.{kind}"));
        fs::write(&path, picture).map_err(|error| format!("{}: {error}", path.display()))?;
        narrator.note(&format!("  It is in {}.", path.display()))?;
    }
    Ok(folder.join(format!("{name}.png")))
}

/// `examples/offline_verification.rs`, and the appliance's keys in a file.
struct Offline {
    program: PathBuf,
    jwks: PathBuf,
}

impl Offline {
    async fn fetch(narrator: &mut Narrator, bank: &Bank, appliance: &Appliance) -> Outcome<Self> {
        narrator.step("anybody who is to verify attestations fetches the public keys once");
        let answer = bank.get(narrator, "/v1/jwks").await?;
        let keys = answer.json["keys"].as_array().ok_or("the answer holds no keys")?;
        narrator
            .check("one key of P-256, and nothing private", keys.len() == 1 && keys[0].get("d").is_none())?;
        let jwks = appliance.folder.join("jwks.json");
        fs::write(&jwks, &answer.text).map_err(words)?;
        let program = std::env::current_exe().map_err(words)?.with_file_name("offline_verification");
        Ok(Self { program, jwks })
    }

    /// The claims, or the program's one line.
    fn verify(&self, attestation: &str) -> Outcome<Result<Value, String>> {
        let mut child = Command::new(&self.program)
            .arg("--jwks")
            .arg(&self.jwks)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        // Dropped at once, so that the program sees the end.
        child
            .stdin
            .take()
            .map(|mut input| input.write_all(attestation.as_bytes()))
            .transpose()
            .map_err(words)?;
        let output = child.wait_with_output().map_err(words)?;
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).map(Ok).map_err(words);
        }
        Ok(Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
