//! Presented codes inside a custodian, against SoftHSM: the code itself, the codes of an authorization, and its steps.

use std::collections::BTreeSet;

use hsm_authd::domain::account::AccountRef;
use hsm_authd::domain::authorization::{Authorization, Means};
use hsm_authd::domain::credential::{Credential, Kind, Signer, Terminal};
use hsm_authd::domain::id::{CredentialId, PresentationId};
use hsm_authd::domain::otp::{Algorithm, Otp};
use hsm_authd::domain::presentation::PresentationCode;
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::time::{BootId, Deadline, Now, RunId, rfc3339};
use hsm_authd::hsm::messages::{AuthorizationStep, CheckAuthorization, Fault, Request, Response};
use sha2::{Digest, Sha256};

use crate::by_hand::{digits, mac};
use crate::custodian::{account, otp, outcome, request_fault, sealed, state, tenant};
use crate::custodian_signatures::bytes;
use crate::intruder::intrude;
use crate::presenting::{ADDRESS, another};
use crate::signers::Device;
use crate::store_samples;
use crate::token::{Custodian, TestToken};

const SECRET: &[u8; 32] = b"a terminal's secret of 32 bytes.";
const DEVICE: CredentialId = CredentialId::from_random([1; 16]);
const TERMINAL: CredentialId = CredentialId::from_random([3; 16]);
const EXPIRES_UNIX_MS: u64 = 1_800_000_300_000;

fn authorization(means: Means) -> Authorization {
    let now = Now {
        unix_ms: EXPIRES_UNIX_MS - 300_000,
        boot_ms: 0,
        boot_id: BootId([1; 16]),
        run: RunId([0; 16]),
        trusted: true,
        floor: Default::default(),
    };
    Authorization {
        credential: DEVICE,
        tenant: tenant(),
        account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
        version: 1,
        means,
        nonce: [7; 32],
        expires: Deadline::after(&now, 300_000),
        uplink_seen: true,
        attempts_left: 3,
    }
}

fn sms() -> Authorization {
    authorization(Means::Sms { terminal: TERMINAL })
}

fn credential(id: CredentialId, account: &str, kind: Kind) -> Row {
    Row::Credential(Credential {
        id,
        tenant: tenant(),
        account: account.to_owned().try_into().unwrap(),
        version: 1,
        created_unix_ms: 0,
        kind,
        deleted_unix_ms: None,
    })
}

fn device(number: u8) -> Row {
    let key = PublicKey::from_pem(&Device::new(number).pem()).unwrap();
    credential(DEVICE, "acct-1", Kind::Signer(Signer { algorithm: key.algorithm(), key: Some(key) }))
}

/// The code as `docs/methods/presented_code.md` has it, of what the authorization says.
fn code(purpose: &str, authorization: &Authorization) -> String {
    let nonce = data_encoding::HEXLOWER.encode(&authorization.nonce);
    let parts = [
        &format!("hsm-authd/authorization/{purpose}/v1"),
        authorization.tenant.as_str(),
        authorization.account.as_str(),
        &authorization.credential.to_string(),
        &nonce,
        &rfc3339(EXPIRES_UNIX_MS),
    ];
    digits(&mac(SECRET, &parts), 6)
}

impl Custodian {
    fn terminal_row(&mut self, account: &str) -> Row {
        let secret = Some(self.import(Algorithm::Sha256, SECRET));
        let address = ADDRESS.to_owned().try_into().unwrap();
        credential(TERMINAL, account, Kind::Terminal(Terminal { address, secret }))
    }

    /// Device, state, account, authorization and terminal.
    fn under_way(&mut self, authorization: Authorization) -> Vec<SealedBytes> {
        let terminal = self.terminal_row("acct-1");
        self.seal(&[device(1), state(1), account(1), authorization.into(), terminal])
    }

    fn codes(&mut self, standing: &[SealedBytes]) -> Result<[Otp; 2], Fault> {
        match self.call(Request::AuthorizationCodes(standing.to_vec()))? {
            Response::AuthorizationCodes { downlink, uplink } => Ok([downlink, uplink]),
            _ => panic!("another response"),
        }
    }

    /// Whether it is accepted, and the right one of both outcomes sealed.
    fn step(&mut self, standing: &[SealedBytes], step: AuthorizationStep) -> Result<bool, Fault> {
        let (accepted, missed) = ([state(2)], [state(2), account(2)]);
        let check = CheckAuthorization {
            standing: standing.to_vec(),
            step,
            accepted: outcome(&[1, 3], &accepted),
            missed: outcome(&[1, 2], &missed),
        };
        let (is_right, seals) = match self.call(Request::CheckAuthorization(check))? {
            Response::AuthorizationChecked { accepted, sealed } => (accepted, sealed),
            _ => panic!("another response"),
        };
        let (gone, rows): (&[usize], &[Row]) =
            if is_right { (&[1, 3], &accepted) } else { (&[1, 2], &missed) };
        let mut after = Vec::new();
        for (place, row) in standing.iter().enumerate() {
            if !gone.contains(&place) {
                after.push(row.clone());
            }
        }
        after.extend(sealed(&seals, rows));
        // Sum checks the seals, too.
        assert_eq!(self.sum(standing).plus(&seals.sum_change), self.sum(&after));
        Ok(is_right)
    }

    fn presentation_code(
        &mut self,
        id: u8,
        nonce: u8,
        code_hash: Option<[u8; 32]>,
    ) -> Result<Vec<u8>, Fault> {
        let id = PresentationId::from_random([id; 16]);
        match self.call(Request::PresentationCode { id, nonce: [nonce; 32], code_hash })? {
            Response::PresentationCode(code) => Ok(code.expose().to_vec()),
            _ => panic!("another answer"),
        }
    }
}

fn uplink(code: &str, from: &str) -> AuthorizationStep {
    AuthorizationStep::Uplink { code: otp(code), from: from.to_owned().try_into().unwrap() }
}

/// Signed by the device of this number.
fn completion(number: u8, code: Option<&str>, message: &[u8]) -> AuthorizationStep {
    AuthorizationStep::Completion {
        code: code.map(otp),
        digest: Sha256::digest(message).into(),
        jws_header: None,
        signature: bytes(&Device::new(number).p1363(message)),
    }
}

#[test]
fn a_presentations_code_is_its_own_and_the_same_again() {
    let token = TestToken::new();
    let codes = |custodian: &mut Custodian| {
        let all = [(1, 1), (1, 2), (2, 1), (2, 2)]
            .map(|(id, nonce)| custodian.presentation_code(id, nonce, None).unwrap());
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 4);
        assert!(all.iter().all(|code| code.len() == 16));
        all
    };
    let hash = |code: &[u8]| PresentationCode::new(code.try_into().unwrap()).hash();
    let first = codes(&mut token.custodian());
    // After a rotation new ones are made by another key, and those that were made are found by their hash.
    intrude(&token, "right hsm-authd/row/v2");
    let mut custodian = token.custodian();
    let second = codes(&mut custodian);
    assert!(second.iter().all(|code| !first.contains(code)));
    for code in [&first[0], &second[0]] {
        assert_eq!(custodian.presentation_code(1, 1, Some(hash(code))).as_ref(), Ok(code));
    }
    match custodian.presentation_code(1, 1, Some(hash(&first[1]))) {
        Err(Fault::Request(reason)) => assert!(reason.contains("that is gone"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let other = TestToken::made();
    assert!(
        codes(&mut other.custodian()).iter().all(|code| !first.contains(code)),
        "under another token's key"
    );
}

#[test]
fn the_codes_are_those_of_the_sealed_rows() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let others = [
        sms(),
        Authorization { nonce: [8; 32], ..sms() },
        Authorization { credential: CredentialId::from_random([9; 16]), ..sms() },
        Authorization { uplink_seen: false, attempts_left: 1, version: 7, ..sms() },
    ];
    for authorization in others {
        let standing = custodian.under_way(authorization.clone());
        let both = &standing[3..];
        let [downlink, up] = custodian.codes(both).unwrap();
        assert!(downlink.matches(&otp(&code("downlink", &authorization))));
        assert!(up.matches(&otp(&code("uplink", &authorization))));
        assert!(!up.matches(&downlink));
        for place in [0, 1] {
            let mut tampered = both.to_vec();
            tampered[place].seal.mac[0] ^= 1;
            assert_eq!(custodian.codes(&tampered).err(), Some(Fault::Seal(place as u8)));
        }
        request_fault(custodian.codes(&both[..1]));
        request_fault(custodian.codes(&both[1..]));
        request_fault(custodian.codes(&[]));
    }
    // Neither another account's terminal, nor another one, nor what is none.
    let row = custodian.seal(&[sms().into()]);
    let others = custodian.terminal_row("acct-2");
    let secret = Some(custodian.import(Algorithm::Sha256, SECRET));
    let address = ADDRESS.to_owned().try_into().unwrap();
    let another = credential(
        CredentialId::from_random([4; 16]),
        "acct-1",
        Kind::Terminal(Terminal { address, secret }),
    );
    let evidence = "login".to_owned().try_into().unwrap();
    for terminal in [others, another, device(1), store_samples::credential(3, "bank-a", "acct-1").into()] {
        let terminal = custodian.seal(&[terminal]);
        request_fault(custodian.codes(&[row.clone(), terminal].concat()));
    }
    let by_password = custodian.under_way(authorization(Means::Password { evidence }));
    request_fault(custodian.codes(&by_password[3..]));
}

#[test]
fn a_message_is_right_if_code_and_origin_are() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.under_way(sms());
    let right = code("uplink", &sms());
    assert!(custodian.step(&standing, uplink(&right, ADDRESS)).unwrap());
    for (code, from) in [
        (another(&right), ADDRESS.to_owned()),
        (code("downlink", &sms()), ADDRESS.to_owned()),
        (format!("{right}0"), ADDRESS.to_owned()),
        (right.clone(), format!("{ADDRESS}0")),
        (right.clone(), ADDRESS[1..].to_owned()),
        (right.clone(), "x".repeat(256)),
    ] {
        assert!(!custodian.step(&standing, uplink(&code, &from)).unwrap(), "{code} {from}");
    }
}

#[test]
fn a_completion_is_right_if_code_and_signature_are() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.under_way(sms());
    let (message, right) = (sms().signing_input(), code("downlink", &sms()));
    assert!(custodian.step(&standing, completion(1, Some(&right), &message)).unwrap());
    assert!(!custodian.step(&standing, completion(2, Some(&right), &message)).unwrap());
    assert!(!custodian.step(&standing, completion(1, Some(&another(&right)), &message)).unwrap());
    assert!(!custodian.step(&standing, completion(1, Some(&code("uplink", &sms())), &message)).unwrap());
    let unsigned = AuthorizationStep::Completion {
        code: Some(otp(&right)),
        digest: Sha256::digest(&message).into(),
        jws_header: None,
        signature: None,
    };
    assert!(!custodian.step(&standing, unsigned).unwrap());
    // A right signature of anything else is none, whatever the front says that it is.
    for other in [Authorization { nonce: [8; 32], ..sms() }.signing_input(), b"anything".to_vec()] {
        request_fault(custodian.step(&standing, completion(1, Some(&right), &other)));
    }
    let evidence = "login".to_owned().try_into().unwrap();
    let by_password = authorization(Means::Password { evidence });
    let standing = custodian.under_way(by_password.clone());
    let message = by_password.signing_input();
    assert!(custodian.step(&standing, completion(1, None, &message)).unwrap());
    assert!(!custodian.step(&standing, completion(2, None, &message)).unwrap());
    request_fault(custodian.step(&standing, completion(1, Some(&right), &message)));
    request_fault(custodian.step(&standing, uplink(&right, ADDRESS)));
    assert!(custodian.end().0.success());
}

/// What is right follows from the sealed rows, and what they say is held to.
#[test]
fn no_step_is_taken_that_the_rows_do_not_allow() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let (message, right) = (sms().signing_input(), code("downlink", &sms()));
    let up = code("uplink", &sms());
    let steps = || [uplink(&up, ADDRESS), completion(1, Some(&right), &message)];
    let standing = custodian.under_way(sms());
    for place in 0..standing.len() {
        for step in steps() {
            let mut tampered = standing.clone();
            tampered[place].seal.mac[31] ^= 1;
            assert_eq!(custodian.step(&tampered, step).err(), Some(Fault::Seal(place as u8)));
        }
    }
    for authorization in [
        Authorization { attempts_left: 0, ..sms() },
        Authorization { credential: CredentialId::from_random([9; 16]), ..sms() },
        Authorization { account: "acct-2".to_owned().try_into().unwrap(), ..sms() },
        Authorization { tenant: "bank-b".to_owned().try_into().unwrap(), ..sms() },
    ] {
        let standing = custodian.under_way(authorization);
        for step in steps() {
            request_fault(custodian.step(&standing, step));
        }
    }
    let waiting = custodian.under_way(Authorization { uplink_seen: false, ..sms() });
    let [first, second] = steps();
    assert!(custodian.step(&waiting, first).unwrap());
    request_fault(custodian.step(&waiting, second));
    request_fault(custodian.step(&standing, completion(1, None, &message)));
    for gone in [0, 3, 4] {
        for step in steps() {
            let mut rest = standing.clone();
            rest.remove(gone);
            request_fault(custodian.step(&rest, step));
        }
    }
}
