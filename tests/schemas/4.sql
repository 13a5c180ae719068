-- What the fourth release made of an empty database, as it stood in the database itself. It never changes.
PRAGMA application_id = 0x68736d61;
PRAGMA user_version = 4;
CREATE TABLE credential_state (
    id               BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    version          INTEGER NOT NULL,
    status           TEXT NOT NULL,
    next_factor      INTEGER NOT NULL,
    last_accepted    INTEGER,
    drift_steps      INTEGER NOT NULL,
    failures         INTEGER NOT NULL,
    lock             BLOB,
    account_share    INTEGER NOT NULL,
    account_epoch    INTEGER NOT NULL,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE account (
    tenant           TEXT NOT NULL,
    account          TEXT NOT NULL,
    version          INTEGER NOT NULL,
    failures         INTEGER NOT NULL,
    lock             BLOB,
    epoch            INTEGER NOT NULL,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL,
    PRIMARY KEY (tenant, account)
) STRICT, WITHOUT ROWID;
CREATE TABLE idempotency (
    client           TEXT NOT NULL,
    key              TEXT NOT NULL,
    version          INTEGER NOT NULL,
    fingerprint      BLOB NOT NULL,
    answer           BLOB NOT NULL,
    expires_unix_ms  INTEGER NOT NULL,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL,
    PRIMARY KEY (client, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency (expires_unix_ms);
CREATE TABLE audit (
    seq        INTEGER PRIMARY KEY,
    unix_ms    INTEGER NOT NULL,
    event      TEXT NOT NULL,
    tenant     TEXT,
    client     TEXT,
    request_id TEXT,
    credential BLOB
, transaction_id BLOB) STRICT;
CREATE INDEX audit_clock ON audit (seq) WHERE event IN ('clock.stepped', 'clock.accepted');
CREATE TABLE row_sum (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    sum  BLOB NOT NULL CHECK (length(sum) = 32)
) STRICT;
CREATE TABLE "credential" (
    id               BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    account          TEXT NOT NULL,
    version          INTEGER NOT NULL,
    created_unix_ms  INTEGER NOT NULL,
    type             TEXT NOT NULL,
    algorithm        TEXT,
    digits           INTEGER,
    look_ahead       INTEGER,
    period_s         INTEGER,
    skew_steps       INTEGER,
    suite            TEXT,
    usage            TEXT,
    kek_version      INTEGER,
    secret           BLOB,
    data_version     INTEGER,
    pin_hash         BLOB,
    public_key       BLOB,
    deleted_unix_ms  INTEGER,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
, certificate_chain BLOB, relying_party BLOB, address TEXT, salt BLOB, identity_key_version INTEGER, identity_key BLOB, evidence TEXT) STRICT, WITHOUT ROWID;
CREATE INDEX credential_of_account ON credential (tenant, account, created_unix_ms, id)
    WHERE deleted_unix_ms IS NULL;
CREATE INDEX credential_of_tenant ON credential (tenant, created_unix_ms, id)
    WHERE deleted_unix_ms IS NULL;
CREATE INDEX credential_deleted ON credential (deleted_unix_ms)
    WHERE deleted_unix_ms IS NOT NULL;
CREATE TABLE used_input (
    id               BLOB NOT NULL,
    fingerprint      BLOB NOT NULL,
    tenant           TEXT NOT NULL,
    version          INTEGER NOT NULL,
    time_step        INTEGER,
    expires_unix_ms  INTEGER,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL,
    PRIMARY KEY (id, fingerprint)
) STRICT, WITHOUT ROWID;
CREATE INDEX used_input_expires ON used_input (expires_unix_ms) WHERE expires_unix_ms IS NOT NULL;
CREATE TABLE payment (
    id               BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    version          INTEGER NOT NULL,
    created_unix_ms  INTEGER NOT NULL,
    method           BLOB NOT NULL,
    method_name      TEXT NOT NULL,
    payer            TEXT,
    payee            TEXT NOT NULL,
    amount           TEXT NOT NULL,
    currency         TEXT NOT NULL,
    order_text       TEXT NOT NULL,
    platform         TEXT,
    remark           TEXT,
    parent_id        BLOB,
    parent_hash      BLOB,
    nonce            BLOB NOT NULL,
    expires          BLOB NOT NULL,
    expires_unix_ms  INTEGER NOT NULL,
    state            TEXT NOT NULL,
    attempts_left    INTEGER NOT NULL,
    ended_unix_ms    INTEGER,
    authenticator    BLOB,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
, progress BLOB) STRICT, WITHOUT ROWID;
CREATE INDEX payment_of_payer ON payment (tenant, payer, created_unix_ms, id);
CREATE INDEX payment_of_tenant ON payment (tenant, created_unix_ms, id);
CREATE INDEX payment_pending ON payment (expires_unix_ms) WHERE state = 'pending';
CREATE INDEX payment_ended ON payment (ended_unix_ms) WHERE ended_unix_ms IS NOT NULL;
CREATE TABLE attestation (
    transaction_id   BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    version          INTEGER NOT NULL,
    jws              TEXT NOT NULL,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE binding (
    credential       BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    version          INTEGER NOT NULL,
    epoch            INTEGER NOT NULL,
    acknowledged     INTEGER NOT NULL,
    lookup           BLOB NOT NULL,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX binding_of_lookup ON binding (tenant, lookup);
CREATE TABLE presentation (
    id               BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    version          INTEGER NOT NULL,
    credential       BLOB NOT NULL,
    account          TEXT NOT NULL,
    created_unix_ms  INTEGER NOT NULL,
    nonce            BLOB NOT NULL,
    code_hash        BLOB NOT NULL,
    expires          BLOB NOT NULL,
    transaction_id   BLOB,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX presentation_of_code ON presentation (tenant, code_hash);
CREATE INDEX presentation_created ON presentation (created_unix_ms);
CREATE TABLE device_authorization (
    credential       BLOB PRIMARY KEY,
    tenant           TEXT NOT NULL,
    account          TEXT NOT NULL,
    version          INTEGER NOT NULL,
    terminal         BLOB,
    evidence         TEXT,
    nonce            BLOB NOT NULL,
    expires          BLOB NOT NULL,
    expires_unix_ms  INTEGER NOT NULL,
    uplink_seen      INTEGER NOT NULL,
    attempts_left    INTEGER NOT NULL,
    seal_key_version INTEGER NOT NULL,
    seal             BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX device_authorization_expires ON device_authorization (expires_unix_ms);
INSERT INTO row_sum (only, sum) VALUES (1, zeroblob(32));
