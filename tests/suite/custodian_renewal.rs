//! Rows under the newest keys: what a custodian makes of them.

use hsm_authd::domain::credential::{CredentialState, Kind};
use hsm_authd::domain::rolling::Binding;
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::hsm::messages::{Fault, Request, Response};

use crate::custodian::{check, request_fault};
use crate::intruder::intrude;
use crate::store_samples;
use crate::token::{Custodian, TestToken};

impl Custodian {
    fn renewed(&mut self, standing: &[SealedBytes]) -> Result<Vec<SealedBytes>, Fault> {
        let Response::Renewed { rows, sealed } = self.call(Request::Renew(standing.to_vec()))? else {
            panic!()
        };
        assert_eq!(rows.len(), sealed.seals.len());
        let rows = rows.into_iter().zip(sealed.seals).map(|(bytes, seal)| SealedBytes { bytes, seal });
        let rows: Vec<_> = rows.collect();
        assert_eq!(self.sum(standing).plus(&sealed.sum_change), self.sum(&rows));
        Ok(rows)
    }
}

fn decoded(row: &SealedBytes) -> Row {
    row.bytes.decode().unwrap()
}

/// The wrapped secret of a row that has one, taken out.
fn secret(row: &mut Row) -> Option<(u16, Vec<u8>)> {
    let Row::Credential(credential) = row else { return None };
    let Kind::Otp(token) = &mut credential.kind else { panic!() };
    token.secret.take().map(|secret| (secret.parts().0, secret.parts().1.to_vec()))
}

#[test]
fn each_row_becomes_its_next_version_and_nothing_else_changes() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let mut standing = custodian.enrolled();
    let others = store_samples::one_of_each().into_iter().map(|sealed| sealed.row);
    let others: Vec<_> =
        others.filter(|row| !matches!(row, Row::Credential(_) | Row::State(_) | Row::Binding(_))).collect();
    assert!(others.len() >= 8, "every table");
    standing.extend(custodian.seal(&others));
    intrude(&token, "right hsm-authd/kek/v2");
    intrude(&token, "right hsm-authd/row/v2");
    let Ok(Response::KeysLoaded(newest)) = custodian.call(Request::LoadKeys) else { panic!() };
    assert_eq!(serde_json::to_value(newest).unwrap()["kek"], 2);

    let mut before = standing.clone();
    for _ in 0..2 {
        let after = custodian.renewed(&before).unwrap();
        for (old, new) in before.iter().zip(&after) {
            assert_eq!(new.seal.key_version, 2);
            let (mut expected, mut row) = (decoded(old), decoded(new));
            expected.succeed();
            let (was, is) = (secret(&mut expected), secret(&mut row));
            assert_eq!(row, expected);
            if let Some((version, blob)) = is {
                let (old_version, old_blob) = was.unwrap();
                assert_eq!((version, blob == old_blob), (2, old_version == 2), "wrapped anew, once");
            }
        }
        assert_eq!(custodian.check(check(&after[..3], &["755224"], &[0], &[])).unwrap().0, Some(0));
        before = after;
    }
    // Nothing of it is left in the HSM, and nobody else's rows are renewed.
    let mut forged = standing.clone();
    forged[0].seal.mac[0] ^= 1;
    assert_eq!(custodian.renewed(&forged).err(), Some(Fault::Seal(0)));
}

#[test]
fn a_binding_goes_with_the_state_that_speaks_of_it() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let binding = Binding { version: 4, ..store_samples::binding(1) };
    let state = |next_factor| CredentialState {
        id: binding.credential,
        next_factor,
        ..store_samples::state(1, binding.tenant.as_str())
    };
    let both = custodian.seal(&[binding.clone().into(), state(4).into()]);
    let renewed = custodian.renewed(&both).unwrap();
    assert_eq!(decoded(&renewed[0]), Row::Binding(Binding { version: 5, ..binding.clone() }));
    assert_eq!(decoded(&renewed[1]), Row::State(state(4).next().bound(5)));
    // A state alone is renewed, and speaks of the same binding.
    let alone = custodian.renewed(&both[1..]).unwrap();
    assert_eq!(decoded(&alone[0]), Row::State(state(4).next()));

    assert!(request_fault(custodian.renewed(&both[..1])).contains("without its state"));
    // One that was put back is not made to look like the present one.
    let old = custodian.seal(&[binding.clone().into(), state(5).into()]);
    assert!(request_fault(custodian.renewed(&old)).contains("does not speak of"));
}
