//! The certificates of the `tls` keys: asking for one, and which key still needs to be there for one.

use super::tokens::{Token, Tokens};
use super::{WRONG_ANSWER, in_child, say};
use crate::Ending;
use crate::config::Config;
use crate::custodian::certificate_request::{CertificateWish, CommonName, ServerName};
use crate::custodian::key_task::{KeyDescription, KeyTask, KeyTaskDone};
use crate::domain::system_key::KeyKind;
use crate::tls::{self, HsmCertificate};

/// Whether no configured certificate is of this version of `tls`, in any token.
///
/// # Errors
/// As for [`Ending`]: one is, or cannot be read.
pub fn is_of_none(config: &Config, there: &[Vec<KeyDescription>], version: u16) -> Ending {
    let name = format!("hsm-authd/{}/v{version}", KeyKind::Tls);
    for certificate in tls::hsm_certificates(&config.server) {
        let HsmCertificate { path, key } =
            certificate.map_err(|error| format!("{error}; nobody knows whether it is of {name}"))?;
        let is_it = |held: &KeyDescription| {
            (held.kind, held.version, &held.public) == (KeyKind::Tls, version, &Some(key.clone()))
        };
        if there.iter().flatten().any(is_it) {
            return Err(Some(format!(
                "{}: the certificate is of {name}: put one of a newer key in its place first (`hsm-authd keys csr`)",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Prints a request for a certificate of each token's newest `tls` key, or of one token's.
///
/// # Errors
/// As for [`Ending`]; nothing was printed then.
pub fn request(
    config: &Config,
    names: Vec<ServerName>,
    subject: Option<CommonName>,
    token: Option<&str>,
) -> Ending {
    let names = if names.is_empty() { certified_names(config)? } else { names };
    let Some(first) = names.first() else {
        return Err(Some("give --name: the certificate in server.certificate has no names".to_owned()));
    };
    let first = match first {
        ServerName::Dns(name) => name.clone(),
        ServerName::Ip(address) => address.to_string(),
    };
    let common_name = subject.or_else(|| CommonName::try_from(first).ok());
    let wish = CertificateWish { common_name, names };
    let tokens = Tokens::of(&config.hsm);
    let asked: Vec<_> = tokens.0.iter().filter(|of| token.is_none_or(|label| of.name == label)).collect();
    if asked.is_empty() {
        let all: Vec<_> = tokens.0.iter().map(|token| token.name.as_str()).collect();
        return Err(Some(format!("--token: there are {}", all.join(", "))));
    }
    // All of them first: of what fails nothing is printed.
    let request = |token: &&Token| match in_child(&token.hsm, KeyTask::RequestCertificate(wish.clone()))? {
        KeyTaskDone::CertificateRequested(pem) => Ok(pem),
        _ => Err(Some(WRONG_ANSWER.to_owned())),
    };
    let requests = asked.iter().map(request).collect::<Result<Vec<_>, Option<String>>>()?;
    for (token, pem) in asked.iter().zip(&requests) {
        if requests.len() > 1 {
            // Around PEM there may be text (RFC 7468, section 2).
            say(format!("token {}:", token.name))?;
        }
        say(pem.trim_end().to_owned())?;
    }
    Ok(())
}

/// Those of the first certificate: who renews it asks for the same, and for all of them.
fn certified_names(config: &Config) -> Result<Vec<ServerName>, String> {
    let names = tls::server_names(&config.server).map_err(|error| format!("give --name: {error}"))?;
    let odd = |name: &String| {
        format!("give --name: the certificate has {name:?}, which is neither a DNS name nor an address")
    };
    names.iter().map(|name| ServerName::parse(name).ok_or_else(|| odd(name))).collect()
}
