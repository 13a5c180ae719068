//! What `hsm-authd keys list` shows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::custodian::key_task::KeyDescription;
use crate::domain::signer::PublicKey;
use crate::domain::system_key::KeyKind;
use crate::domain::time::rfc3339;
use crate::store::usage::KeyUsage;
use crate::tls::HsmCertificate;

/// How often a key may encrypt by AES-GCM with random nonces of 96 bits: NIST SP 800-38D, section 8.3. How often it did
/// nobody counts (docs/keys.md).
const ENCRYPTIONS_MAX: u64 = 1 << 32;

/// A key in the list. As JSON its members are these.
#[derive(Serialize)]
pub struct KeyRow {
    /// The token's label; where another one has the same, with its place in the configuration.
    token: String,
    label: String,
    kind: KeyKind,
    version: u16,
    /// Whether it is what is used for what is new.
    newest: bool,
    /// Whether only its public half is left.
    retired: bool,
    /// Whether it is what an interruption left: `keys rotate`, `keys retire` and `init` remove it.
    unfinished: bool,
    algorithm: String,
    check_value: String,
    /// The files of the configured certificates that are of it; absent where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<String>,
    /// How many stored rows need it; absent for keys that rows do not name.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    /// How often it may encrypt in all; absent for keys that have no such limit. It is not what is left: `rows` is how many
    /// encryptions are stored, and what was replaced or never stored counts too.
    #[serde(skip_serializing_if = "Option::is_none")]
    encryptions_max: Option<u64>,
    /// Since when it is used, RFC 3339; absent for what `init` made.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    /// Its objects in the token, with what the HSM says of each.
    objects: Vec<BTreeMap<String, String>>,
}

/// Those of each token, by its name.
pub fn rows(
    tokens: Vec<(String, Vec<KeyDescription>)>,
    known: (&KeyUsage, &BTreeMap<(KeyKind, u16), u64>),
    certificates: &[HsmCertificate],
) -> Vec<KeyRow> {
    tokens.into_iter().flat_map(|(token, keys)| rows_of(&token, keys, known, certificates)).collect()
}

fn rows_of(
    token: &str,
    keys: Vec<KeyDescription>,
    (usage, made): (&KeyUsage, &BTreeMap<(KeyKind, u16), u64>),
    certificates: &[HsmCertificate],
) -> Vec<KeyRow> {
    let of = |public: &Option<PublicKey>| {
        let certificates = certificates.iter().filter(|of| public.as_ref() == Some(&of.key));
        certificates.map(|of| of.path.display().to_string()).collect()
    };
    let mut newest: BTreeMap<KeyKind, u16> = BTreeMap::new();
    for key in keys.iter().filter(|key| !key.retired && !key.unfinished) {
        let of_kind = newest.entry(key.kind).or_default();
        *of_kind = key.version.max(*of_kind);
    }
    let row = |key: KeyDescription| KeyRow {
        newest: !key.retired && !key.unfinished && newest.get(&key.kind) == Some(&key.version),
        rows: matches!(key.kind, KeyKind::Kek | KeyKind::Row | KeyKind::Data)
            .then(|| usage.of(key.kind, key.version)),
        encryptions_max: (key.kind == KeyKind::Data && !key.unfinished).then_some(ENCRYPTIONS_MAX),
        since: made.get(&(key.kind, key.version)).map(|unix_ms| rfc3339(*unix_ms)),
        certificates: of(&key.public),
        token: token.to_owned(),
        label: key.label,
        kind: key.kind,
        version: key.version,
        retired: key.retired,
        unfinished: key.unfinished,
        algorithm: key.algorithm,
        check_value: key.check_value,
        objects: key.objects.into_iter().map(BTreeMap::from_iter).collect(),
    };
    keys.into_iter().map(row).collect()
}

/// For people: a line a key, and one an object with what is true of it.
pub fn text(rows: &[KeyRow]) -> String {
    let mut lines = vec![format!(
        "{:<32} {:<13} {:<7} {:>10}  {:<10} {:<20}  {}",
        "KEY", "ALGORITHM", "CHECK", "ROWS", "STATE", "SINCE", "TOKEN"
    )];
    for row in rows {
        let count = row.rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string());
        let state = match (row.retired, row.newest) {
            _ if row.unfinished => "unfinished",
            (true, _) => "retired",
            (false, true) => "newest",
            (false, false) => "older",
        };
        let since = row.since.as_deref().unwrap_or("-");
        lines.push(format!(
            "{:<32} {:<13} {:<7} {:>10}  {:<10} {:<20}  {}",
            row.label, row.algorithm, row.check_value, count, state, since, row.token
        ));
        lines.extend(row.objects.iter().map(object));
        lines.extend(row.certificates.iter().map(|path| format!("  its certificate is in {path}")));
        lines.extend(row.encryptions_max.map(|max| format!("  may encrypt {max} times in all")));
    }
    lines.join("\n")
}

fn object(attributes: &BTreeMap<String, String>) -> String {
    let said = |name: &str| attributes.get(name).map_or("?", String::as_str);
    let short = |name: &str| name.trim_start_matches("CKA_").to_lowercase().replace('_', "-");
    let is_true: Vec<_> =
        attributes.iter().filter(|(_, value)| *value == "true").map(|(name, _)| short(name)).collect();
    let only =
        attributes.get("CKA_ALLOWED_MECHANISMS").map(|only| format!("; only {only}")).unwrap_or_default();
    format!("  {} {}: {}{only}", said("CKA_CLASS"), said("CKA_KEY_TYPE"), is_true.join(" "))
}
