//! Transactions that one credential has to approve.

use crate::domain::caller::Tenant;
use crate::domain::credential::{Kind, OcraToken, OcraUse};
use crate::domain::id::CredentialId;
use crate::domain::ocra::{Challenge, Suite};
use crate::domain::transaction::{CODES_MAX, Device, Method, Progress, Transaction};
use crate::domain::verification::usable;

use super::{Basis, ByCredential, MethodName, Refused, Service, is_spelt};

impl Service {
    pub(super) async fn by_credential(
        &self,
        tenant: &Tenant,
        wanted: MethodName,
        by: &ByCredential,
    ) -> Result<Basis, Refused> {
        let id = by.credential.ok_or(Refused::Absent)?;
        let rows = self.store.credential(tenant, id).await?.ok_or(Refused::Absent)?;
        usable(rows.subject())?;
        let bytes = rows.to_bytes().into();
        let before = vec![(&rows.credential).into(), (&rows.state).into()];
        let credential = rows.credential.row;
        let method = method(wanted, credential.id, &credential.kind)?;
        let payer = credential.account.clone();
        if by.payer.as_ref().is_some_and(|named| *named != payer) {
            return Err(Refused::Invalid {
                field: "payer",
                reason: "must be the account that the credential speaks for",
            });
        }
        is_spelt(&payer)?;
        let attempts_left = match method {
            Method::DeviceSignature { .. } => self.policies.transactions.signature_attempts,
            _ => CODES_MAX,
        };
        Ok(Basis {
            method,
            payer: Some(payer),
            attempts_left,
            progress: Progress::None,
            before,
            bytes,
            replaced: Vec::new(),
        })
    }

    /// Whether the token has answered this very question before, and would be taken for repeating itself: then
    /// another nonce is needed. Only a short question comes twice, and only of a token that has neither a
    /// counter nor a clock is that for ever.
    pub(super) async fn was_answered(&self, transaction: &Transaction) -> Result<bool, Refused> {
        let (Some(id), Some(suite)) = (transaction.credential(), transaction.method.suite()) else {
            return Ok(false);
        };
        if suite.has_counter() || suite.time_step_s().is_some() {
            return Ok(false);
        }
        let challenge =
            Challenge::of_transaction(suite, &transaction.digest()).map_err(Refused::unavailable)?;
        let inputs = vec![challenge.fingerprint(None)];
        Ok(!self.store.used_inputs(id, inputs).await?.is_empty())
    }
}

/// How a credential of this kind approves.
fn method(wanted: MethodName, credential: CredentialId, kind: &Kind) -> Result<Method, Refused> {
    match (wanted, kind) {
        (MethodName::ChallengeResponse, Kind::Ocra(token)) => {
            Ok(Method::ChallengeResponse { credential, suite: suite(token)? })
        }
        (MethodName::ChallengeResponse, _) => Err(misfit("must be an ocra credential")),
        (MethodName::DeviceSignature, Kind::Ocra(token)) => {
            Ok(Method::DeviceSignature { credential, device: Device::Ocra(suite(token)?) })
        }
        (MethodName::DeviceSignature, Kind::Signer(_) | Kind::CertifiedSigner(_)) => {
            Ok(Method::DeviceSignature { credential, device: Device::Signature })
        }
        (MethodName::DeviceSignature, Kind::Authenticator(_)) => {
            Ok(Method::DeviceSignature { credential, device: Device::Assertion })
        }
        (MethodName::DeviceSignature, _) => Err(misfit("must be a signer or an ocra credential")),
        // What these need is not this.
        (MethodName::MultiTerminal | MethodName::RollingPassword | MethodName::PresentedCode, _) => {
            Err(misfit("must not be there"))
        }
    }
}

/// The suite of a token that answers transactions.
fn suite(token: &OcraToken) -> Result<Suite, Refused> {
    match (token.usage, token.suite.session_bytes()) {
        (OcraUse::Verify, _) => Err(misfit("answers the questions of /verify, and no transactions")),
        (_, Some(..32)) => Err(misfit("its suite's session is shorter than a digest's 32 bytes")),
        _ => Ok(token.suite.clone()),
    }
}

fn misfit(reason: &'static str) -> Refused {
    Refused::Invalid { field: "credential", reason }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{SystemClock, WatchedClock};
    use crate::config::CredentialPolicy;
    use crate::domain::audit::{AuditEntry, Event};
    use crate::domain::caller::Caller;
    use crate::domain::certificate::Trust;
    use crate::domain::id::PresentationId;
    use crate::domain::row::{Row, TableSums};
    use crate::hsm::Hsm;
    use crate::service::enrolment::{Enrolment, NewKind};
    use crate::service::pruning::tests::{longest, longest_transaction, sealed};
    use crate::service::{Ask, Policies};
    use crate::store::{Commit, Store};

    fn service(store: Store, terminal_cooling_seconds: u32, has_stepped: bool) -> Service {
        Service::new(
            store,
            Hsm::new(&[1], (Default::default(), 1), tokio::sync::mpsc::unbounded_channel().0),
            Arc::new(WatchedClock::new(Box::new(SystemClock), has_stepped).unwrap()),
            Policies {
                credentials: CredentialPolicy { terminal_cooling_seconds, ..Default::default() },
                transactions: Default::default(),
                attestations: Default::default(),
                audit: Default::default(),
            },
            Trust::none(),
        )
    }

    /// Eight digits come twice once in a hundred million times: no test waits for that.
    #[tokio::test]
    async fn a_question_is_not_asked_again_for_a_life() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-questions-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = Store::open(&folder.join("store.db")).unwrap();
        let service = service(store.clone(), 0, false);
        let (_, _, input, _) = longest(1);
        let asked = |suite: &str, device: bool, nonce: [u8; 32]| {
            let (mut transaction, _) = longest_transaction();
            let (suite, credential) = (Suite::parse(suite).unwrap(), input.id);
            transaction.method = match device {
                false => Method::ChallengeResponse { credential, suite },
                true => Method::DeviceSignature { credential, device: Device::Ocra(suite) },
            };
            transaction.terms.nonce = nonce;
            transaction
        };
        let suites = [
            ("OCRA-1:HOTP-SHA1-6:QN08", true),
            ("OCRA-1:HOTP-SHA256-8:QH08-PSHA1", true),
            ("OCRA-1:HOTP-SHA256-8:QA08-S032", true),
            // Their codes are used up by the counter, or by the time.
            ("OCRA-1:HOTP-SHA256-8:C-QN08", false),
            ("OCRA-1:HOTP-SHA256-8:QN08-T1M", false),
        ];
        for (number, (suite, once)) in (1..).zip(suites) {
            for device in [false, true] {
                let (first, next) =
                    (asked(suite, device, [number; 32]), asked(suite, device, [number + 100; 32]));
                assert!(!service.was_answered(&first).await.unwrap(), "{suite}");
                let challenge =
                    Challenge::of_transaction(first.method.suite().unwrap(), &first.digest()).unwrap();
                let mut used = input.clone();
                (used.version, used.fingerprint) = (1, challenge.fingerprint(None));
                (used.time_step, used.expires_unix_ms) = (None, None);
                let commit = Commit {
                    before: Vec::new(),
                    rows: vec![sealed(Row::UsedInput(used))],
                    removed: Vec::new(),
                    sum_change: TableSums::default(),
                    audit: AuditEntry {
                        unix_ms: 0,
                        event: Event::Verified,
                        actor: None,
                        credential: None,
                        transaction: None,
                        detail: None,
                    },
                };
                let _durable = store.commit(commit).await.unwrap();
                assert_eq!(service.was_answered(&first).await.unwrap(), once, "{suite}");
                assert!(!service.was_answered(&next).await.unwrap(), "{suite}: another nonce helps");
            }
        }
        drop(service);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// A payee who was shown a code could else find out how long the payer's account is.
    #[tokio::test]
    async fn how_much_text_fits_says_nothing_of_whose_code_it_is() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-fits-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let service = service(Store::open(&folder.join("store.db")).unwrap(), 0, false);
        let (longest, _) = longest_transaction();
        let mut outcomes = std::collections::HashSet::new();
        for characters in 1..=256 {
            let fits = ["a".to_owned(), "\u{20000}".repeat(128)].map(|account| {
                let mut transaction = longest.clone();
                let (presentation, credential) =
                    (PresentationId::from_random([1; 16]), CredentialId::from_random([2; 16]));
                let account = account.try_into().unwrap();
                transaction.method = Method::PresentedCode { presentation, credential, account };
                transaction.terms.payer = None;
                transaction.terms.platform = None;
                transaction.terms.order = "o".to_owned().try_into().unwrap();
                transaction.terms.remark = Some("\u{20000}".repeat(characters).try_into().unwrap());
                service.fits_a_qr_code(&transaction).is_ok()
            });
            assert_eq!(fits[0], fits[1], "{characters}");
            outcomes.insert(fits[0]);
        }
        assert_eq!(outcomes.len(), 2, "some fit, and some do not");
        drop(service);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// With the clock set back a terminal would be old the moment the clock is right again.
    #[tokio::test]
    async fn no_terminal_is_enrolled_while_nobody_knows_the_time() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-cooling-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let service = service(Store::open(&folder.join("store.db")).unwrap(), 3_600, true);
        let caller = Caller {
            client: "c".to_owned().try_into().unwrap(),
            tenant: "t".to_owned().try_into().unwrap(),
            delivers: false,
            enrolls: true,
            administers: false,
        };
        let ask = Ask { caller, request_id: String::new(), idempotency: None };
        let wanted = Enrolment {
            account: "acct-1".to_owned().try_into().unwrap(),
            kind: NewKind::Terminal("+1".to_owned().try_into().unwrap()),
            awaits_authorization: false,
        };
        let refused = service.enrol(ask, wanted).await.err();
        assert_eq!(refused, Some(Refused::clock_untrusted()));
        drop(service);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
