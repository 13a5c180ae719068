//! `hsm-authd recover`: what an operator does about a database that the service refuses to start on.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::Ending;
use crate::clock::{SystemClock, WatchedClock};
use crate::domain::anchors::Seen;
use crate::domain::time::rfc3339;
use crate::offline::Offline;
use crate::operator;
use crate::service::recovery::{Done, Recovery, Survey};
use crate::store::{Damage, Store};
use crate::supervisor;

/// What it does, for whom it is told to first.
const PLAN: &str = "\
it would
  suspend every credential: some can be resumed by a client with the permission admin, after the bank has looked into its
    own records; hotp, ocra with a counter or without a clock, and rolling can only be deleted, or rolling be bound anew;
  cancel what is pending: transactions, codes that are presented, authorizations of devices;
  remove the rows that are named above, if any;
  cut the log before the first entry that does not fit, if there is one, and set the rest aside in a file;
  begin the log under a new name, and put a new anchor into the token";

/// Runs `recover` for a configuration file; without `accept` it only says what it would do. `clock_is_right`: the operator
/// has looked at the wall clock.
///
/// # Errors
/// See [`Ending`].
pub fn run(path: &Path, accept: bool, clock_is_right: bool) -> Ending {
    let config = operator::load(path)?;
    let _lock = supervisor::lock(&config.store.path)?;
    let store = &config.store.path;
    if !store.try_exists().map_err(|e| format!("{}: {e}", store.display()))? {
        return Err(Some(format!("{}: there is no database; restore one first", store.display())));
    }
    let offline = Offline::start(&config.hsm)?;
    let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).map_err(str::to_owned)?);
    // Whoever only looks changes nothing of a database that the release before can still end as it should be.
    let open = if accept { Store::open_to_recover } else { Store::open_to_look };
    let store = open(store).map_err(|e| e.to_string())?;
    let recovery = Recovery::new(store, offline.hsm.clone(), clock);
    let survey = offline.runtime.block_on(recovery.survey()).map_err(|e| e.to_string())?;
    tell(&survey);
    if survey.is_sound() {
        for name in survey.away() {
            say(format_args!(
                "token {name} may know of more: ask again when it is back, if the service refuses to start"
            ));
        }
        say(format_args!("there is nothing to recover, and nothing was changed: start the service"));
        return Ok(());
    }
    if !accept {
        say(format_args!("{PLAN}"));
        return Err(Some("nothing was changed; the flag --accept-rollback does it".to_owned()));
    }
    if let Some(doubt) = survey.clock_doubt.as_ref().filter(|_| !clock_is_right) {
        return Err(Some(format!(
            "{doubt}: set it right, or add --clock-is-right if it is; nothing was changed"
        )));
    }
    let done = offline.runtime.block_on(recovery.accept_rollback(&survey)).map_err(|e| e.to_string())?;
    tell_done(&done, path);
    Ok(())
}

fn tell(survey: &Survey) {
    for (name, seen) in &survey.tokens {
        let name = if survey.tokens.len() == 1 { "token".to_owned() } else { format!("token {name}") };
        match seen {
            Seen::Anchor(anchor) => say(format_args!(
                "{name}: knows of {} entries of {} since {}",
                anchor.head.size,
                anchor.head.origin,
                rfc3339(anchor.unix_s.saturating_mul(1_000))
            )),
            Seen::Nothing => say(format_args!("{name}: has no anchor of the log")),
            Seen::Away => say(format_args!("{name}: is away, and was not asked")),
        }
    }
    let right = survey.rows;
    say(format_args!(
        "database: {} entries of {}; {right} rows are right",
        survey.head.size, survey.head.origin
    ));
    if let Some(reason) = &survey.turned_back {
        say(format_args!("{reason}"));
    }
    if let Some(reason) = &survey.damaged {
        say(format_args!("database: {reason}"));
    }
    if let Some(Damage { kept, aside, .. }) = survey.log.as_ref().filter(|damage| damage.aside > 0) {
        say(format_args!(
            "log: the first {kept} entries fit; {aside} would be set aside, in a file beside the database"
        ));
    }
    if let Some(doubt) = &survey.clock_doubt {
        say(format_args!("clock: {doubt}"));
    }
    for name in &survey.wrong {
        say(format_args!("not what was sealed: {name}"));
    }
}

fn tell_done(done: &Done, config: &Path) {
    if let Some(path) = &done.set_aside {
        say(format_args!("set aside: what did not fit of the log, in {}", path.display()));
    }
    for name in &done.removed {
        say(format_args!("removed: {name}"));
    }
    say(format_args!(
        "suspended: {} that an administrator may resume, {} that can only be deleted or bound anew; deleted already: {}",
        done.resumable, done.stranded, done.deleted
    ));
    say(format_args!("transactions cancelled: {}", done.cancelled));
    say(format_args!("the log is {} from here on, and the token has its anchor", done.origin));
    say(format_args!("next: {}", operator::start(config)));
}

fn say(line: std::fmt::Arguments<'_>) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stdout(), "{line}");
}
