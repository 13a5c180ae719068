//! How rows are spelt: the bytes under their seals.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Row, Table};
use crate::domain::account::{Account, AccountRef};
use crate::domain::attestation::Attestation;
use crate::domain::authorization::Authorization;
use crate::domain::caller::Tenant;
use crate::domain::credential::{
    Credential, CredentialState, ImportedSeed, Kind, OtpToken, StoredSecret, UsedInput,
};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::idempotency::IdempotencyRecord;
use crate::domain::otp::{Algorithm, Digits, MovingFactor};
use crate::domain::presentation::Presentation;
use crate::domain::rolling::Binding;
use crate::domain::time::Deadline;
use crate::domain::transaction::{AuthenticatorReport, Method, Progress, State, Terms, Transaction};

/// How rows are spelt. It outlives releases: new variants go to the end, and a variant's fields never
/// change, because a row is encoded again to check its seal (`docs/decisions/0005-sealed-rows.md`).
#[derive(Serialize, Deserialize)]
pub enum Spelling<'a> {
    /// A HOTP or TOTP credential, as it was spelt when there was no other kind.
    OtpCredential(OtpCredential<'a>),
    State(Cow<'a, CredentialState>),
    Account(Cow<'a, Account>),
    Idempotency(Cow<'a, IdempotencyRecord>),
    /// A credential of any other kind.
    Credential(Cow<'a, Credential>),
    UsedInput(Cow<'a, UsedInput>),
    Attestation(Cow<'a, Attestation>),
    /// A transaction without progress, as it was spelt when there was none.
    Transaction(PlainTransaction<'a>),
    /// One with progress.
    TransactionInProgress(PlainTransaction<'a>, Cow<'a, Progress>),
    Binding(Cow<'a, Binding>),
    Presentation(Cow<'a, Presentation>),
    Authorization(Cow<'a, Authorization>),
    ImportedSeed(Cow<'a, ImportedSeed>),
}

#[derive(Serialize, Deserialize)]
pub struct OtpCredential<'a> {
    id: CredentialId,
    tenant: Cow<'a, Tenant>,
    account: Cow<'a, AccountRef>,
    version: u64,
    created_unix_ms: u64,
    algorithm: Algorithm,
    digits: Digits,
    moving_factor: MovingFactor,
    secret: Cow<'a, Option<StoredSecret>>,
    deleted_unix_ms: Option<u64>,
}

/// A transaction but for its progress.
#[derive(Serialize, Deserialize)]
pub struct PlainTransaction<'a> {
    id: TransactionId,
    tenant: Cow<'a, Tenant>,
    version: u64,
    created_unix_ms: u64,
    method: Cow<'a, Method>,
    terms: Cow<'a, Terms>,
    expires: Deadline,
    state: State,
    attempts_left: u8,
    ended_unix_ms: Option<u64>,
    authenticator: Option<AuthenticatorReport>,
}

impl<'a> PlainTransaction<'a> {
    fn of(row: &'a Transaction) -> Self {
        Self {
            id: row.id,
            tenant: Cow::Borrowed(&row.tenant),
            version: row.version,
            created_unix_ms: row.created_unix_ms,
            method: Cow::Borrowed(&row.method),
            terms: Cow::Borrowed(&row.terms),
            expires: row.expires,
            state: row.state,
            attempts_left: row.attempts_left,
            ended_unix_ms: row.ended_unix_ms,
            authenticator: row.authenticator,
        }
    }

    fn into_row(self, progress: Progress) -> Row {
        Row::Transaction(Transaction {
            id: self.id,
            tenant: self.tenant.into_owned(),
            version: self.version,
            created_unix_ms: self.created_unix_ms,
            method: self.method.into_owned(),
            terms: self.terms.into_owned(),
            expires: self.expires,
            state: self.state,
            attempts_left: self.attempts_left,
            ended_unix_ms: self.ended_unix_ms,
            authenticator: self.authenticator,
            progress,
        })
    }
}

impl<'a> Spelling<'a> {
    /// The table of the spelling of this number.
    pub fn table(number: u8) -> Option<Table> {
        Some(match number {
            0 | 4 => Table::Credential,
            1 => Table::State,
            2 => Table::Account,
            3 => Table::Idempotency,
            5 => Table::UsedInput,
            6 => Table::Attestation,
            7 | 8 => Table::Transaction,
            9 => Table::Binding,
            10 => Table::Presentation,
            11 => Table::Authorization,
            12 => Table::ImportedSeed,
            _ => return None,
        })
    }

    pub fn of(row: &'a Row) -> Self {
        match row {
            Row::Credential(row) => match &row.kind {
                Kind::Otp(token) => Self::OtpCredential(OtpCredential {
                    id: row.id,
                    tenant: Cow::Borrowed(&row.tenant),
                    account: Cow::Borrowed(&row.account),
                    version: row.version,
                    created_unix_ms: row.created_unix_ms,
                    algorithm: token.algorithm,
                    digits: token.digits,
                    moving_factor: token.moving_factor,
                    secret: Cow::Borrowed(&token.secret),
                    deleted_unix_ms: row.deleted_unix_ms,
                }),
                _ => Self::Credential(Cow::Borrowed(row)),
            },
            Row::State(row) => Self::State(Cow::Borrowed(row)),
            Row::Account(row) => Self::Account(Cow::Borrowed(row)),
            Row::Idempotency(row) => Self::Idempotency(Cow::Borrowed(row)),
            Row::UsedInput(row) => Self::UsedInput(Cow::Borrowed(row)),
            Row::Attestation(row) => Self::Attestation(Cow::Borrowed(row)),
            Row::Transaction(row) => match &row.progress {
                Progress::None => Self::Transaction(PlainTransaction::of(row)),
                progress => Self::TransactionInProgress(PlainTransaction::of(row), Cow::Borrowed(progress)),
            },
            Row::Binding(row) => Self::Binding(Cow::Borrowed(row)),
            Row::Presentation(row) => Self::Presentation(Cow::Borrowed(row)),
            Row::Authorization(row) => Self::Authorization(Cow::Borrowed(row)),
            Row::ImportedSeed(row) => Self::ImportedSeed(Cow::Borrowed(row)),
        }
    }

    pub fn into_row(self) -> Row {
        match self {
            Self::OtpCredential(row) => Row::Credential(Credential {
                id: row.id,
                tenant: row.tenant.into_owned(),
                account: row.account.into_owned(),
                version: row.version,
                created_unix_ms: row.created_unix_ms,
                kind: Kind::Otp(OtpToken {
                    algorithm: row.algorithm,
                    digits: row.digits,
                    moving_factor: row.moving_factor,
                    secret: row.secret.into_owned(),
                }),
                deleted_unix_ms: row.deleted_unix_ms,
            }),
            Self::Credential(row) => Row::Credential(row.into_owned()),
            Self::State(row) => Row::State(row.into_owned()),
            Self::Account(row) => Row::Account(row.into_owned()),
            Self::Idempotency(row) => Row::Idempotency(row.into_owned()),
            Self::UsedInput(row) => Row::UsedInput(row.into_owned()),
            Self::Attestation(row) => Row::Attestation(row.into_owned()),
            Self::Transaction(row) => row.into_row(Progress::None),
            Self::TransactionInProgress(row, progress) => row.into_row(progress.into_owned()),
            Self::Binding(row) => Row::Binding(row.into_owned()),
            Self::Presentation(row) => Row::Presentation(row.into_owned()),
            Self::Authorization(row) => Row::Authorization(row.into_owned()),
            Self::ImportedSeed(row) => Row::ImportedSeed(row.into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DOMAIN, RowBytes};
    use super::*;
    use crate::domain::authorization::Means;
    use crate::domain::certificate::CertificateChain;
    use crate::domain::credential::{
        Authenticator, CertifiedSigner, EncryptedPinHash, OcraToken, OcraUse, Signer, Status, Terminal,
    };
    use crate::domain::id::PresentationId;
    use crate::domain::multi_terminal::{
        EntryOrder, EntryRule, FrozenTerminal, Interval, MultiTerminal, Round,
    };
    use crate::domain::ocra::Suite;
    use crate::domain::rolling::{Evidence, Rolling};
    use crate::domain::signer::SignatureAlgorithm;
    use crate::domain::time::{BootId, Now, RunId};
    use crate::domain::transaction::{self, Approver, Device, Parent};
    use crate::domain::webauthn::RelyingParty;

    /// Spelt by the first release. Should one of these change, no seal made before fits any more.
    const FIRST_SPELLINGS: [&str; 6] = [
        "1068736d2d61757468642f726f772f763100010662616e6b2d6106616363742d3101e8070006000a010128070707\
         0707070707070707070707070707070707070707070707070707070707070707070707070700",
        "1068736d2d61757468642f726f772f763100010662616e6b2d6106616363742d3101e8070208013c020101280707\
         070707070707070707070707070707070707070707070707070707070707070707070707070700",
        "1068736d2d61757468642f726f772f763100010662616e6b2d6106616363742d3102e8070208013c020001a846",
        "1068736d2d61757468642f726f772f763101010662616e6b2d610100ac0201ab0203050100a5f736a6f736030303\
         03030303030303030303030303a0f7360000",
        "1068736d2d61757468642f726f772f7631020662616e6b2d6106616363742d3101000000",
        "1068736d2d61757468642f726f772f763103076261636b656e64036b2d3101090909090909090909090909090909\
         0909090909090909090909090909090909027b7da846",
    ];

    #[test]
    fn rows_are_spelt_as_ever() {
        for (number, spelling) in FIRST_SPELLINGS.into_iter().enumerate() {
            let bytes = RowBytes(data_encoding::HEXLOWER.decode(spelling.as_bytes()).unwrap());
            let row = bytes.decode().unwrap_or_else(|| panic!("{number}"));
            let is_table = match row {
                Row::Credential(row) => number < 3 && matches!(row.kind, Kind::Otp(_)),
                Row::State(_) => number == 3,
                Row::Account(_) => number == 4,
                Row::Idempotency(_) => number == 5,
                _ => false,
            };
            assert!(is_table, "{number}");
        }
    }

    /// OCRA and what it used up, spelt by the release that brought them; likewise.
    const OCRA_SPELLINGS: [&str; 3] = [
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d610661\
         6363742d3101e80701234f4352412d313a484f54502d534841312d363a432d514e30382d50534841312d54314d\
         0a0101010120070707070707070707070707070707070707070707070707070707070707070701013009090909\
         090909090909090909090909090909090909090909090909090909090909090909090909090909090909090900",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d610661\
         6363742d3101e80701174f4352412d313a484f54502d534841312d363a514e30380a0100000000",
        "1068736d2d61757468642f726f772f763105878e9cb8f0e0c183878e9cb8f0e0c183870e050505050505050505\
         05050505050505050505050505050505050505050505050662616e6b2d6101016401c0c4f502",
    ];

    #[test]
    fn ocra_is_spelt_as_ever() {
        let credential = |suite: &str, usage, secret, pin_hash| {
            let suite = Suite::parse(suite).unwrap();
            let token = OcraToken { suite, look_ahead: 10, skew_steps: 1, usage, secret, pin_hash };
            Row::Credential(Credential {
                id: CredentialId::from_random([7; 16]),
                tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
                account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
                version: 1,
                created_unix_ms: 1_000,
                kind: Kind::Ocra(token),
                deleted_unix_ms: None,
            })
        };
        let secret = Some(StoredSecret::Wrapped { kek_version: 1, blob: vec![7; 32] });
        let pin_hash = Some(EncryptedPinHash { data_version: 1, blob: vec![9; 48] });
        let input = UsedInput {
            id: CredentialId::from_random([7; 16]),
            fingerprint: [5; 32],
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            version: 1,
            time_step: Some(100),
            expires_unix_ms: Some(6_120_000),
        };
        let rows = [
            credential("OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1-T1M", OcraUse::Verify, secret, pin_hash),
            credential("OCRA-1:HOTP-SHA1-6:QN08", OcraUse::Transaction, None, None),
            Row::UsedInput(input),
        ];
        for (row, spelling) in rows.into_iter().zip(OCRA_SPELLINGS) {
            assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), spelling);
            assert_eq!(row.encode().table(), Some(row.key().table()));
            assert_eq!(row.encode().decode(), Some(row));
        }
    }

    /// An attestation, likewise.
    const ATTESTATION_SPELLING: &str = "1068736d2d61757468642f726f772f763106878e9cb8f0e0c183878e9cb8f0e0c183870e06\
         62616e6b2d610105682e632e73";

    #[test]
    fn an_attestation_is_spelt_as_ever() {
        let row = Row::Attestation(Attestation {
            transaction: TransactionId::from_random([7; 16]),
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            version: 1,
            jws: "h.c.s".to_owned(),
        });
        assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), ATTESTATION_SPELLING);
        assert_eq!(row.encode().decode(), Some(row));
    }

    /// Transactions, and the signers that came with them, spelt by the release that brought them; likewise.
    const TRANSACTION_SPELLINGS: [&str; 4] = [
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d61066163\
         63742d3101e8070301000102020102010300",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d61066163\
         63742d3101e807040100100404040404040404040404040404040409612e6578616d706c65011168747470733a2f\
         2f612e6578616d706c6500",
        "1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d3700878e9cb8f0e0c183878e9cb8\
         f0e0c183870e194f4352412d313a484f54502d5348413235362d383a514836340109616363742d30303031164445\
         383933373034303034343035333230313330303007313235302e303003455552086f726465722d37370000002020\
         20202020202020202020202020202020202020202020202020202020202080e896d68d3780e896d68d3701010101\
         010101010101010101010101e0a71200030000",
        "1068736d2d61757468642f726f772f763107010662616e6b2d6102a0c084d68d3701878e9cb8f0e0c183878e9cb8\
         f0e0c183870e0100164445383933373034303034343035333230313330303007313235302e303003455552086f72\
         6465722d3737010170010172018890a0c0808182848890a0c0808182848810090909090909090909090909090909\
         09090909090909090909090909090909092020202020202020202020202020202020202020202020202020202020\
         20202080e896d68d3780e896d68d3701010101010101010101010101010101e0a712010101ac0201ac020100",
    ];

    #[test]
    fn transactions_and_their_signers_are_spelt_as_ever() {
        let credential = |kind| {
            Row::Credential(Credential {
                id: CredentialId::from_random([7; 16]),
                tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
                account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
                version: 1,
                created_unix_ms: 1_000,
                kind,
                deleted_unix_ms: None,
            })
        };
        let signer = || Signer { algorithm: SignatureAlgorithm::Rs256, key: None };
        let chain: CertificateChain = serde_json::from_str("[[1, 2], [3]]").unwrap();
        let origins = vec!["https://a.example".to_owned()];
        let party = RelyingParty::new(vec![4; 16], "a.example".to_owned(), origins).unwrap();
        let plain = transaction::tests::golden();
        let device = Device::Assertion;
        let full = Transaction {
            version: 2,
            method: Method::DeviceSignature { credential: CredentialId::from_random([7; 16]), device },
            terms: Terms {
                payer: None,
                platform: Some("p".to_owned().try_into().unwrap()),
                remark: Some("r".to_owned().try_into().unwrap()),
                parent: Some(Parent { id: TransactionId::from_random([8; 16]), hash: [9; 32] }),
                ..plain.terms.clone()
            },
            state: State::Approved,
            attempts_left: 1,
            ended_unix_ms: Some(300),
            authenticator: Some(AuthenticatorReport {
                sign_count: 300,
                backup_eligible: true,
                backed_up: false,
            }),
            ..plain.clone()
        };
        let rows = [
            credential(Kind::CertifiedSigner(CertifiedSigner { signer: signer(), chain: Some(chain) })),
            credential(Kind::Authenticator(Authenticator { signer: signer(), party })),
            Row::Transaction(plain),
            Row::Transaction(full),
        ];
        for (row, spelling) in rows.into_iter().zip(TRANSACTION_SPELLINGS) {
            assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), spelling);
            assert_eq!(row.encode().table(), Some(row.key().table()));
            assert_eq!(row.encode().decode(), Some(row));
        }
    }

    /// What the methods of several terminals, rolling passwords and presented codes brought; likewise.
    const TERMINAL_SPELLINGS: [&str; 2] = [
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d3101e807050f2b3439203137302031323334353637010128070707070707070707070707070707070707070707\
         0707070707070707070707070707070707070700",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d3102e807050f2b34392031373020313233343536370001a846",
    ];
    const ROLLING_SPELLINGS: [&str; 3] = [
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d3101e8070601012807070707070707070707070707070707070707070707070707070707070707070707070707\
         07070706060606060606060606060606060606000000",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d3101e8070601012807070707070707070707070707070707070707070707070707070707070707070707070707\
         0707070606060606060606060606060606060601012808080808080808080808080808080808080808080808080808\
         080808080808080808080808080808010963617365203437313100",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d3102e80706000606060606060606060606060606060600010963617365203437313101a846",
    ];
    const STATE_SPELLINGS: [&str; 4] = [
        "1068736d2d61757468642f726f772f763101878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6101030000\
         0000000000",
        "1068736d2d61757468642f726f772f763101878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6101040000\
         0000000000",
        "1068736d2d61757468642f726f772f763101878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6101050000\
         0000000000",
        "1068736d2d61757468642f726f772f763101878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6101060000\
         0000000000",
    ];
    const MULTI_TERMINAL_SPELLINGS: [&str; 5] = [
        "1068736d2d61757468642f726f772f763108010662616e6b2d6101a0c084d68d370202878e9cb8f0e0c183878e9cb8\
         f0e0c183870e022b318890a0c0808182848890a0c0808182848810022b320001ac020208ac0201d00fef0701010101\
         010101010101010101010101e8070109616363742d3030303116444538393337303430303434303533323031333030\
         3007313235302e303003455552086f726465722d373700000020202020202020202020202020202020202020202020\
         2020202020202020202080e896d68d3780e896d68d3701010101010101010101010101010101e0a712000300000101\
         01ac020109090909090909090909090909090909",
        "1068736d2d61757468642f726f772f763108010662616e6b2d6101a0c084d68d370202878e9cb8f0e0c183878e9cb8\
         f0e0c183870e022b318890a0c0808182848890a0c0808182848810022b32010008ac02000109616363742d30303031\
         164445383933373034303034343035333230313330303007313235302e303003455552086f726465722d3737000000\
         202020202020202020202020202020202020202020202020202020202020202080e896d68d3780e896d68d37010101\
         01010101010101010101010101e0a712000300000100000000",
        "1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d370202878e9cb8f0e0c183878e9cb8\
         f0e0c183870e022b318890a0c0808182848890a0c0808182848810022b32020008ac02000109616363742d30303031\
         164445383933373034303034343035333230313330303007313235302e303003455552086f726465722d3737000000\
         202020202020202020202020202020202020202020202020202020202020202080e896d68d3780e896d68d37010101\
         01010101010101010101010101e0a71200030000",
        "1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d370202878e9cb8f0e0c183878e9cb8\
         f0e0c183870e022b318890a0c0808182848890a0c0808182848810022b32030008ac02000109616363742d30303031\
         164445383933373034303034343035333230313330303007313235302e303003455552086f726465722d3737000000\
         202020202020202020202020202020202020202020202020202020202020202080e896d68d3780e896d68d37010101\
         01010101010101010101010101e0a71200030000",
        "1068736d2d61757468642f726f772f763108010662616e6b2d6101a0c084d68d370202878e9cb8f0e0c183878e9cb8\
         f0e0c183870e022b318890a0c0808182848890a0c0808182848810022b32030008ac0201d00fef0701010101010101\
         010101010101010101e8070109616363742d3030303116444538393337303430303434303533323031333030300731\
         3235302e303003455552086f726465722d373700000020202020202020202020202020202020202020202020202020\
         2020202020202080e896d68d3780e896d68d3701010101010101010101010101010101e0a712000300000100000001\
         09090909090909090909090909090909",
    ];
    const ROLLING_PASSWORD_SPELLINGS: [&str; 2] = [
        "1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d370300164445383933373034303034\
         343035333230313330303007313235302e303003455552086f726465722d3737000000202020202020202020202020\
         202020202020202020202020202020202020202080e896d68d3780e896d68d37010101010101010101010101010101\
         01e0a71200030000",
        "1068736d2d61757468642f726f772f763108010662616e6b2d6101a0c084d68d370300164445383933373034303034\
         343035333230313330303007313235302e303003455552086f726465722d3737000000202020202020202020202020\
         202020202020202020202020202020202020202080e896d68d3780e896d68d37010101010101010101010101010101\
         01e0a7120003000002878e9cb8f0e0c183878e9cb8f0e0c183870e06616363742d31ac02",
    ];
    const PRESENTED_CODE_SPELLING: [&str; 1] =
        ["1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d37048890a0c0808182848890a0c080\
         8182848810878e9cb8f0e0c183878e9cb8f0e0c183870e06616363742d310016444538393337303430303434303533\
         3230313330303007313235302e303003455552086f726465722d373700000020202020202020202020202020202020\
         2020202020202020202020202020202080e896d68d3780e896d68d3701010101010101010101010101010101e0a712\
         00030000"];
    const BINDING_SPELLINGS: [&str; 2] = [
        "1068736d2d61757468642f726f772f763109878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6101010005\
         0505050505050505050505",
        "1068736d2d61757468642f726f772f763109878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6102ac0201\
         050505050505050505050505",
    ];
    const PRESENTATION_SPELLINGS: [&str; 2] = [
        "1068736d2d61757468642f726f772f76310a8890a0c0808182848890a0c08081828488100662616e6b2d6101878e9c\
         b8f0e0c183878e9cb8f0e0c183870e06616363742d31e8070404040404040404040404040404040404040404040404\
         0404040404040404040505050505050505050505050505050505050505050505050505050505050505d00fef070101\
         0101010101010101010101010101e80700",
        "1068736d2d61757468642f726f772f76310a8890a0c0808182848890a0c08081828488100662616e6b2d6102878e9c\
         b8f0e0c183878e9cb8f0e0c183870e06616363742d31e8070404040404040404040404040404040404040404040404\
         0404040404040404040505050505050505050505050505050505050505050505050505050505050505d00fef070101\
         0101010101010101010101010101e807018992a4c890a1c2848992a4c890a1c2848912",
    ];
    const AUTHORIZATION_SPELLINGS: [&str; 2] = [
        "1068736d2d61757468642f726f772f76310b878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d3101008992a4c890a1c2848992a4c890a1c2848912040404040404040404040404040404040404040404040404\
         0404040404040404d00fef0701010101010101010101010101010101e8070103",
        "1068736d2d61757468642f726f772f76310b878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
         742d310101096361736520343731310404040404040404040404040404040404040404040404040404040404040404\
         d00fef0701010101010101010101010101010101e8070001",
    ];

    fn assert_spelt<const N: usize>(rows: [Row; N], spellings: [&str; N]) {
        for (row, spelling) in rows.into_iter().zip(spellings) {
            assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), spelling, "{row:?}");
            assert_eq!(row.encode().table(), Some(row.key().table()));
            assert_eq!(row.encode().decode(), Some(row));
        }
    }

    fn tenant() -> Tenant {
        Tenant::try_from("bank-a".to_owned()).unwrap()
    }

    fn account() -> AccountRef {
        AccountRef::try_from("acct-1".to_owned()).unwrap()
    }

    fn id(byte: u8) -> CredentialId {
        CredentialId::from_random([byte; 16])
    }

    fn evidence() -> Evidence {
        "case 4711".to_owned().try_into().unwrap()
    }

    /// A moment one second after 1 s since 1970, and 7 ms since boot.
    fn moment() -> Deadline {
        let now = Now {
            unix_ms: 1_000,
            boot_ms: 7,
            boot_id: BootId([1; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        };
        Deadline::after(&now, 1_000)
    }

    #[test]
    fn terminals_and_rolling_credentials_are_spelt_as_ever() {
        let credential = |kind| Credential {
            id: id(7),
            tenant: tenant(),
            account: account(),
            version: 1,
            created_unix_ms: 1_000,
            kind,
            deleted_unix_ms: None,
        };
        let wrapped = |byte| StoredSecret::Wrapped { kek_version: 1, blob: vec![byte; 40] };
        let address = "+49 170 1234567".to_owned().try_into().unwrap();
        let terminal = credential(Kind::Terminal(Terminal { address, secret: Some(wrapped(7)) }));
        let gone = terminal.deleted(9_000);
        assert_spelt([Row::Credential(terminal), Row::Credential(gone)], TERMINAL_SPELLINGS);

        let rolling = Rolling::new(wrapped(7), [6; 16]);
        let active =
            Rolling { identity_key: Some(wrapped(8)), evidence: Some(evidence()), ..rolling.clone() };
        let [pending, active] = [rolling, active].map(|rolling| credential(Kind::Rolling(rolling)));
        let gone = active.deleted(9_000);
        assert_spelt([pending, active, gone].map(Row::Credential), ROLLING_SPELLINGS);

        let state = |status| CredentialState { status, ..CredentialState::new(id(7), tenant(), 0, 0) };
        let later = [Status::Pending, Status::Unauthorized, Status::Recovered, Status::Stranded];
        assert_spelt(later.map(state).map(Row::State), STATE_SPELLINGS);
    }

    #[test]
    fn transactions_of_the_later_methods_are_spelt_as_ever() {
        let made = |method, progress| {
            let plain = transaction::tests::golden();
            let payer = plain.terms.payer.filter(|_| matches!(method, Method::MultiTerminal(_)));
            Row::Transaction(Transaction { method, progress, terms: Terms { payer, ..plain.terms }, ..plain })
        };
        let frozen = |byte, text: &str| FrozenTerminal {
            credential: id(byte),
            address: text.to_owned().try_into().unwrap(),
        };
        let method = |order, interval, window| MultiTerminal {
            terminals: vec![frozen(7, "+1"), frozen(8, "+2")],
            rule: EntryRule { order, interval },
            digits: Digits::try_from(8).unwrap(),
            generation: 300,
            window,
        };
        let in_time = method(
            EntryOrder::PresetOrder,
            Some(Interval { interval_s: 300, tolerance_s: 2 }),
            Some(moment()),
        );
        let run = Some(RunId([9; 16]));
        let middle = Round { entered: 1, wrong: true, arrived_boot_ms: 300, run };
        assert_spelt(
            [
                made(Method::MultiTerminal(in_time), Progress::Entry(middle)),
                made(
                    Method::MultiTerminal(method(EntryOrder::Ascending, None, None)),
                    Progress::Entry(Round::default()),
                ),
                made(Method::MultiTerminal(method(EntryOrder::Descending, None, None)), Progress::None),
                made(Method::MultiTerminal(method(EntryOrder::Target, None, None)), Progress::None),
                made(
                    Method::MultiTerminal(method(EntryOrder::Target, None, Some(moment()))),
                    Progress::Entry(Round { run, ..Round::default() }),
                ),
            ],
            MULTI_TERMINAL_SPELLINGS,
        );
        let by = Approver { credential: id(7), account: account(), epoch: 300 };
        assert_spelt(
            [
                made(Method::RollingPassword, Progress::None),
                made(Method::RollingPassword, Progress::Approver(by)),
            ],
            ROLLING_PASSWORD_SPELLINGS,
        );
        let presentation = PresentationId::from_random([8; 16]);
        let presented = Method::PresentedCode { presentation, credential: id(7), account: account() };
        assert_spelt([made(presented, Progress::None)], PRESENTED_CODE_SPELLING);
    }

    #[test]
    fn bindings_presentations_and_authorizations_are_spelt_as_ever() {
        let first = Binding::first(id(7), tenant(), [5; 12]);
        let later = Binding { epoch: 300, ..first.acknowledged() };
        assert_spelt([first, later].map(Row::Binding), BINDING_SPELLINGS);

        let open = Presentation {
            id: PresentationId::from_random([8; 16]),
            tenant: tenant(),
            version: 1,
            credential: id(7),
            account: account(),
            created_unix_ms: 1_000,
            nonce: [4; 32],
            code_hash: [5; 32],
            expires: moment(),
            transaction: None,
        };
        let claimed = open.claimed(TransactionId::from_random([9; 16]));
        assert_spelt([open, claimed].map(Row::Presentation), PRESENTATION_SPELLINGS);

        let by_sms = Authorization {
            credential: id(7),
            tenant: tenant(),
            account: account(),
            version: 1,
            means: Means::Sms { terminal: id(9) },
            nonce: [4; 32],
            expires: moment(),
            uplink_seen: true,
            attempts_left: 3,
        };
        let means = Means::Password { evidence: evidence() };
        let by_password = Authorization { means, uplink_seen: false, attempts_left: 1, ..by_sms.clone() };
        assert_spelt([by_sms, by_password].map(Row::Authorization), AUTHORIZATION_SPELLINGS);
    }

    #[test]
    fn a_transaction_has_one_spelling() {
        let plain = transaction::tests::golden();
        let other =
            Spelling::TransactionInProgress(PlainTransaction::of(&plain), Cow::Borrowed(&Progress::None));
        let other = RowBytes(postcard::to_allocvec(&(DOMAIN, other)).unwrap());
        assert_eq!(other.decode(), None, "one without progress has none of the other spelling");
        let row = Row::Transaction(plain.clone());
        assert_eq!(row.encode().decode(), Some(row.clone()));
        // With progress it is another row, and never the bytes of the one without.
        let progress = Progress::Entry(Round::default());
        let begun = Row::Transaction(Transaction { progress, ..plain });
        assert_ne!(begun.encode(), row.encode());
        assert_eq!(begun.encode().decode(), Some(begun));
    }

    #[test]
    fn a_credential_has_one_spelling() {
        let credential = Credential {
            id: CredentialId::from_random([7; 16]),
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
            version: 1,
            created_unix_ms: 0,
            kind: Kind::Otp(OtpToken {
                algorithm: Algorithm::Sha1,
                digits: Digits::default(),
                moving_factor: MovingFactor::Hotp { look_ahead: 1 },
                secret: None,
            }),
            deleted_unix_ms: None,
        };
        let other = Spelling::Credential(Cow::Borrowed(&credential));
        let other = RowBytes(postcard::to_allocvec(&(DOMAIN, other)).unwrap());
        assert_eq!(other.decode(), None, "that of the other kinds is not its own");
        assert!(Row::Credential(credential).encode().decode().is_some());
    }
}
