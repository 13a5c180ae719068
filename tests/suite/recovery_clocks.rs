//! A recovery makes time marks of the wall clock: of one that may be wrong it makes none.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection as Database;

use crate::daemon::{Daemon, enrol_hotp};
use crate::processes::eventually;
use crate::recovering::{complaint, run, said, snapshot};

const DAY: u64 = 86_400;

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Stops it, and gives a recovery something to do.
fn damage(daemon: &mut Daemon) {
    assert!(daemon.stop().success());
    let database = Database::open(daemon.database()).unwrap();
    assert_eq!(database.execute("UPDATE account SET failures = 1", []).unwrap(), 1);
}

/// What both ways of a recovery say of the clock that they doubt.
fn doubted(daemon: &Daemon) -> String {
    let before = snapshot(daemon);
    let looked = run(daemon, &["recover"]);
    assert!(complaint(&looked).contains("--accept-rollback"));
    let plan = String::from_utf8_lossy(&looked.stdout).into_owned();
    let doubt = plan.lines().find_map(|line| line.strip_prefix("clock: ")).expect(&plan).to_owned();
    let line = complaint(&run(daemon, &["recover", "--accept-rollback"]));
    assert!(line.contains(&doubt[..30]), "{line}");
    assert!(line.ends_with("add --clock-is-right if it is; nothing was changed"), "{line}");
    assert_eq!(snapshot(daemon), before);
    doubt
}

#[tokio::test]
async fn a_clock_that_is_far_ahead_is_taken_on_the_operators_word_alone() {
    for (days, is_doubted) in [(31, true), (29, false)] {
        let mut daemon = Daemon::start_at(now_s() - days * DAY);
        enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
        damage(&mut daemon);
        if is_doubted {
            let doubt = doubted(&daemon);
            assert!(doubt.contains("which is 31 days after ") && doubt.contains("know of"), "{doubt}");
            said(&run(&daemon, &["recover", "--accept-rollback", "--clock-is-right"]));
        } else {
            said(&run(&daemon, &["recover", "--accept-rollback"]));
        }
        // From then on it is known.
        assert!(said(&run(&daemon, &["recover", "--accept-rollback"])).contains("nothing to recover"));
    }
}

#[tokio::test]
async fn a_clock_that_stepped_is_taken_on_the_operators_word_alone() {
    let mut daemon = Daemon::start_at(now_s());
    enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    daemon.step_clock(now_s() - 3_600);
    let database = Database::open(daemon.database()).unwrap();
    eventually("the step is written down", async || {
        let sql = "SELECT count(*) FROM audit WHERE event = 'clock.stepped'";
        let count: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
        (count > 0).then_some(())
    })
    .await;
    drop(database);
    damage(&mut daemon);
    let doubt = doubted(&daemon);
    assert!(
        doubt.starts_with("the log says that the wall clock stepped, and no operator accepted"),
        "{doubt}"
    );
    said(&run(&daemon, &["recover", "--accept-rollback", "--clock-is-right"]));
}

#[tokio::test]
async fn a_clock_that_is_behind_is_taken_on_nobodys_word() {
    let mut daemon = Daemon::start_at(now_s() + DAY);
    enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    damage(&mut daemon);
    let before = snapshot(&daemon);
    for flags in [&["recover"][..], &["recover", "--accept-rollback", "--clock-is-right"]] {
        let line = complaint(&run(&daemon, flags));
        assert!(line.contains(" has passed already: set it right first"), "{line}");
    }
    assert_eq!(snapshot(&daemon), before);
}
