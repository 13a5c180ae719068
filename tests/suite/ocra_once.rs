//! What an OCRA token has used up stays used up: questions, time steps, counters.

use hsm_authd::domain::row::Row;
use serde_json::json;

use crate::bank::{act, credential, delete, done, failed, path, refused};
use crate::clock::recorded;
use crate::daemon::{Daemon, enrol};
use crate::ocra::{
    BY_BOTH, BY_COUNTER, BY_TIME, NOW, PLAIN, STEP, answer, at, enrolled, inputs, submission, wrong,
};
use crate::ocra_token::{Input, OcraToken, question};
use crate::pruning::{pruned, rows, sum};
use crate::submissions::{Crowd, Submission, Tally};
use crate::token::TestToken;

const DAY: u64 = 86_400;

fn counted(counter: u64, text: &str) -> Input<'_> {
    Input { counter: Some(counter), ..question(text) }
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_counter_and_time_is_answered_once_in_a_life() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (id, token) = enrolled(&bank, PLAIN, "acct-1").await;
    let code = |text: &str| token.code(question(text));
    for text in ["first", "second"] {
        done(&answer(&bank, &id, &code(text), question(text)).await);
    }
    // A wrong guess burns no code: the question still has its answer.
    failed(&answer(&bank, &id, &wrong(&code("third")), question("third")).await);
    done(&answer(&bank, &id, &code("third"), question("third")).await);
    assert_eq!(failed(&answer(&bank, &id, &code("first"), question("second")).await), 4, "of another one");
    for round in 0..4 {
        match round {
            0 => {
                daemon.kill();
                daemon.resume();
            }
            1 => {
                assert!(daemon.stop().success());
                daemon.set_clock(NOW + 400 * DAY);
                daemon.resume();
            }
            2 => {
                daemon.kill();
                daemon.step_clock(NOW);
                daemon.resume_with(&["--accept-clock"]);
            }
            _ => {}
        }
        let bank = daemon.connect("bank-a").await;
        for text in ["first", "second", "third"] {
            assert_eq!(failed(&answer(&bank, &id, &code(text), question(text)).await), 4, "{round} {text}");
        }
        assert_eq!(inputs(&daemon), 3);
    }
}

#[tokio::test]
async fn a_question_with_a_time_is_answered_once_a_step_within_the_skew() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for skew in 0..=2_u64 {
        let token = OcraToken::new(BY_TIME);
        let mut body = token.enrolment(&format!("skew-{skew}"));
        body["skew_steps"] = json!(skew);
        let id = enrol(&bank, &body).await;
        // In no order: without a counter one step uses up no other.
        for offset in [0, 2, -1, 1, -2, 3, -3_i64] {
            let input = at(STEP.checked_add_signed(offset).unwrap(), "12345678");
            let first = answer(&bank, &id, &token.code(input), input).await;
            if offset.unsigned_abs() <= skew {
                done(&first);
                assert_eq!(
                    failed(&answer(&bank, &id, &token.code(input), input).await),
                    5,
                    "{skew} {offset}"
                );
            } else {
                failed(&first);
                done(&act(&bank, &id, "unlock").await);
            }
        }
    }
    // The default is one step; and as the time goes on, the same question is another input.
    let (id, token) = enrolled(&bank, BY_TIME, "default").await;
    for later in 0..5 {
        daemon.set_clock(NOW + later * 60);
        for step in [STEP + later - 1, STEP + later + 1] {
            let input = at(step, "12345678");
            let code = token.code(input);
            // Two steps ago this one was ahead.
            if later < 2 || step > STEP + later {
                done(&answer(&bank, &id, &code, input).await);
            }
            assert_eq!(failed(&answer(&bank, &id, &code, input).await), 5, "{later}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_comes_never_within_reach_again() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (id, token) = enrolled(&bank, BY_TIME, "acct-1").await;
    let (other, _) = enrolled(&bank, BY_TIME, "acct-2").await;
    let (plain, plain_token) = enrolled(&bank, PLAIN, "acct-3").await;
    // More than go at once, in two steps, and one that is never over.
    let texts: Vec<String> = (0..20).map(|number| format!("{}", 10_000_000 + number * 17)).collect();
    for text in &texts {
        done(&answer(&bank, &id, &token.code(at(STEP, text)), at(STEP, text)).await);
    }
    let later = at(STEP + 1, &texts[0]);
    done(&answer(&bank, &id, &token.code(later), later).await);
    done(&answer(&bank, &other, &token.code(at(STEP - 1, "1")), at(STEP - 1, "1")).await);
    done(&answer(&bank, &plain, &plain_token.code(question("once")), question("once")).await);
    assert_eq!(inputs(&daemon), 23);
    drop(bank);
    assert!(daemon.stop().success());
    let (before, sum_before) = rows(&daemon).await;

    // Step STEP + 1 of the present is the last from which STEP is within reach; one second before its end.
    daemon.set_clock(NOW + 119);
    daemon.resume();
    pruned(&daemon, 1).await;
    assert!(daemon.stop().success());
    assert_eq!(inputs(&daemon), 22, "only that of the step before is out of reach");
    daemon.set_clock(NOW + 120);
    daemon.resume();
    pruned(&daemon, 2).await;
    assert!(daemon.stop().success());
    assert_eq!(inputs(&daemon), 2, "the later one, and the one that is never over");
    let (after, sum_after) = rows(&daemon).await;
    let mark = after.iter().find_map(|row| match &row.row {
        Row::State(state) if state.id.to_string() == id => Some(state.next_factor),
        _ => None,
    });
    assert_eq!(mark, Some(STEP + 1));
    {
        let folder = TestToken::of(&daemon);
        let mut custodian = folder.custodian();
        assert_eq!(sum(&mut custodian, &before), sum_before);
        assert_eq!(sum(&mut custodian, &after), sum_after);
        // The folder is the daemon's: it stays.
        std::mem::forget(folder);
    }

    // A clock that was ahead is set right. What it made the appliance forget is still used up.
    daemon.step_clock(NOW);
    daemon.resume_with(&["--accept-clock"]);
    let bank = daemon.connect("bank-a").await;
    for (attempt, text) in texts.iter().take(4).enumerate() {
        let input = at(STEP, text);
        assert_eq!(
            failed(&answer(&bank, &id, &token.code(input), input).await),
            4 - attempt as u64,
            "{text}"
        );
    }
    done(&act(&bank, &id, "unlock").await);
    assert_eq!(failed(&answer(&bank, &id, &token.code(later), later).await), 5, "still remembered");
    let fresh = at(STEP + 1, "99999999");
    done(&answer(&bank, &id, &token.code(fresh), fresh).await);
    let used = at(STEP - 1, "1");
    assert_eq!(failed(&answer(&bank, &other, &token.code(used), used).await), 4);
    let once = plain_token.code(question("once"));
    assert_eq!(failed(&answer(&bank, &plain, &once, question("once")).await), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_stepped_makes_nothing_forgotten() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (id, token) = enrolled(&bank, BY_TIME, "acct-1").await;
    done(&answer(&bank, &id, &token.code(at(STEP, "1")), at(STEP, "1")).await);
    daemon.step_clock(NOW + DAY);
    refused(&answer(&bank, &id, "00000000", at(STEP, "2")).await, 503, "unavailable");
    recorded(&daemon);
    drop(bank);
    assert!(daemon.stop().success());
    // A start prunes at once, but not by this clock.
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    refused(&answer(&bank, &id, "00000000", at(STEP, "2")).await, 503, "unavailable");
    drop(bank);
    assert!(daemon.stop().success());
    assert_eq!(inputs(&daemon), 1);
    daemon.resume_with(&["--accept-clock"]);
    pruned(&daemon, 1).await;
    assert!(daemon.stop().success());
    assert_eq!(inputs(&daemon), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_credentials_inputs_go_with_it() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let mut kept = Vec::new();
    for (number, suite) in [PLAIN, BY_TIME].into_iter().enumerate() {
        let (id, token) = enrolled(&bank, suite, &format!("acct-{number}")).await;
        for text in 0..40 {
            let text = format!("{}", 10_000_000 + text * 17);
            done(&answer(&bank, &id, &token.code(at(STEP, &text)), at(STEP, &text)).await);
        }
        assert_eq!(delete(&bank, &id).await.status, 200);
        let (other, _) = enrolled(&bank, suite, &format!("acct-{number}")).await;
        done(&answer(&bank, &other, &token.code(at(STEP, "12345678")), at(STEP, "12345678")).await);
        refused(&answer(&bank, &id, &token.code(at(STEP, "1")), at(STEP, "1")).await, 404, "not-found");
        kept.push(other);
    }
    assert_eq!(inputs(&daemon), 82);
    drop(bank);
    assert!(daemon.stop().success());
    daemon.set_clock(NOW + 90 * DAY + 1);
    daemon.resume();
    pruned(&daemon, 1).await;
    assert!(daemon.stop().success());
    let (after, kept_sum) = rows(&daemon).await;
    let mut states: Vec<String> = Vec::new();
    let mut inputs: Vec<String> = Vec::new();
    for row in &after {
        match &row.row {
            Row::State(state) => states.push(state.id.to_string()),
            Row::UsedInput(input) => inputs.push(input.id.to_string()),
            _ => {}
        }
    }
    states.sort_unstable();
    assert_eq!(inputs, kept[..1], "the other one's time is over");
    kept.sort_unstable();
    assert_eq!(states, kept);
    let folder = TestToken::of(&daemon);
    assert_eq!(sum(&mut folder.custodian(), &after), kept_sum);
    drop(daemon);
}

#[tokio::test]
async fn a_counter_moves_on_and_what_it_skips_is_used_up() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for suite in [BY_COUNTER, BY_BOTH] {
        let token = OcraToken::new(suite);
        let mut body = token.enrolment(suite);
        body["counter"] = json!(7);
        body["look_ahead"] = json!(3);
        let id = enrol(&bank, &body).await;
        let step = suite.contains("-T").then_some(STEP);
        let asked = |counter, text| Input { step, ..counted(counter, text) };
        let shown = |counter, text| token.code(asked(counter, text));
        let submit = async |counter, text| answer(&bank, &id, &shown(counter, text), question(text)).await;
        assert_eq!(failed(&submit(6, "1").await), 4, "before the first");
        assert_eq!(failed(&submit(11, "1").await), 3, "beyond the look-ahead");
        done(&submit(9, "1").await);
        let seen = credential(&bank, &id).await;
        assert_eq!(
            (&seen["counter"], &seen["look_ahead"], &seen["failures"]),
            (&json!(10), &json!(3), &json!(0))
        );
        assert_eq!(failed(&submit(9, "1").await), 5, "a double click");
        assert_eq!(failed(&submit(7, "1").await), 4, "skipped");
        assert_eq!(failed(&submit(8, "2").await), 3, "skipped, whatever the question");
        // The same question again is another input: the counter is another one.
        done(&submit(13, "1").await);
        done(&submit(14, "1").await);
        assert_eq!(failed(&submit(9, "1").await), 4, "only the last one is known as a repeat");
        assert_eq!(inputs(&daemon), 0);
    }
}

#[tokio::test]
async fn counter_and_time_have_to_be_right_together() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (id, token) = enrolled(&bank, BY_BOTH, "acct-1").await;
    let mut counter = 0;
    for (ahead, offset, right) in [
        (0, 0, true),
        (0, -1, true),
        (0, 1, true),
        (10, 1, true),
        (0, 2, false),
        (0, -2, false),
        (11, 0, false),
    ] {
        let step = STEP.checked_add_signed(offset).unwrap();
        let input = Input { counter: Some(counter + ahead), ..at(step, "12345678") };
        let first = answer(&bank, &id, &token.code(input), input).await;
        if right {
            done(&first);
            assert_eq!(failed(&answer(&bank, &id, &token.code(input), input).await), 5);
            counter += ahead + 1;
            // The counter is used up in every step.
            let other = Input { step: Some(step + 1), ..input };
            let again = failed(&answer(&bank, &id, &token.code(other), other).await);
            assert!(again >= 4, "{again}");
            done(&act(&bank, &id, "unlock").await);
        } else {
            assert_eq!(failed(&first), 4);
            done(&act(&bank, &id, "unlock").await);
        }
        assert_eq!(credential(&bank, &id).await["counter"], counter);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_copies_of_an_answer_one_is_accepted() {
    const COPIES: usize = 20;
    let mut daemon = Daemon::start_at(NOW);
    for round in 0..3_u64 {
        // After a kill, the steps that were within reach are over.
        let minutes = round * 4;
        daemon.set_clock(NOW + minutes * 60);
        let crowd = Crowd::of(&daemon, "bank-a").await;
        let (mut all, mut ids) = (Vec::new(), Vec::new());
        for suite in [PLAIN, BY_TIME, BY_COUNTER, BY_BOTH] {
            for number in 0..5 {
                let bank = crowd.connection(number);
                let (id, token) = enrolled(bank, suite, &format!("{round}-{suite}-{number}")).await;
                let input = Input { counter: Some(3), ..at(STEP + minutes, "12345678") };
                let body = submission(&token.code(input), input);
                all.push(Submission { path: path(&id, "verify"), body, idempotency_key: None });
                ids.push(id);
            }
        }
        let once = Tally { yes: 1, no: COPIES - 1, ..Tally::default() };
        assert_eq!(crowd.tally(&all, COPIES).await, vec![once; all.len()]);
        for id in &ids {
            assert_eq!(credential(crowd.connection(1), id).await["failures"], 0, "a repeat costs nothing");
        }
        drop(crowd);
        if round == 1 {
            daemon.kill();
            daemon.resume();
        }
        let crowd = Crowd::of(&daemon, "bank-a").await;
        let never = Tally { no: 2, ..Tally::default() };
        assert_eq!(crowd.tally(&all, 2).await, vec![never; all.len()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_accepts_no_answer_twice() {
    const COPIES: usize = 5;
    let mut daemon = Daemon::start_at(NOW);
    let mut crowd = Crowd::of(&daemon, "bank-a").await;
    let mut tokens = Vec::new();
    for number in 0..12 {
        let suite = [PLAIN, BY_TIME][number % 2];
        tokens.push(enrolled(crowd.connection(number), suite, &format!("acct-{number}")).await);
    }
    for round in 0..4 {
        let text = format!("{}", 10_000_000 + round * 17);
        let minutes = round as u64 * 4;
        daemon.set_clock(NOW + minutes * 60);
        let input = at(STEP + minutes, &text);
        let submission = |(id, token): &(String, OcraToken)| {
            let body = submission(&token.code(input), input);
            Submission { path: path(id, "verify"), body, idempotency_key: None }
        };
        let all: Vec<Submission> = tokens.iter().map(submission).collect();
        let mut before = vec![Tally::default(); all.len()];
        let (mut seen, mut killed) = (0, false);
        let mut outcomes = crowd.send(&all, COPIES);
        while let Some((place, outcome)) = outcomes.recv().await {
            before[place].add(outcome);
            seen += 1;
            if seen == 3 * round + 2 {
                daemon.kill();
                killed = true;
            }
        }
        assert!(killed);
        daemon.resume();
        crowd = Crowd::of(&daemon, "bank-a").await;
        let after = crowd.tally(&all, COPIES).await;
        for (before, after) in before.iter().zip(&after) {
            assert!(before.yes + after.yes <= 1, "{before:?}, {after:?}");
            assert_eq!(after.no, COPIES - after.yes, "{before:?}, {after:?}");
        }
        let again = crowd.tally(&all, 1).await;
        assert!(again.iter().all(|tally| tally.no == 1), "{again:?}");
    }
}
