use super::*;

fn state(custodians: u16) -> State {
    State::new(&[custodians], HsmMetrics::new(&[custodians]))
}

fn refusal(cause: Away, line: &str) -> Refusal {
    Refusal::new(cause, line)
}

fn away(state: &State, cause: Away) -> i64 {
    state.metrics.away.get_or_create(&cause).get()
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_with_the_first_start_that_fails_while_none_is_up() {
    let state = state(2);
    let breaker = state.breaker();
    let look = || (*breaker.borrow(), state.metrics.breaker_open.get());
    state.up(0, 1, "a token");
    state.start_failed(1, 1, refusal(Away::TokenAway, "no token"));
    assert_eq!(look(), (false, 0), "one is up");
    state.lost(0, 1, "it ended");
    assert_eq!(look(), (false, 0), "no start has failed since");
    assert_eq!(state.objection(None), None);
    state.start_failed(1, 2, refusal(Away::TokenAway, "no token"));
    assert_eq!(look(), (true, 1));
    assert_eq!(state.objection(None).unwrap(), "no token");
    state.up(0, 2, "a token");
    assert_eq!(look(), (false, 0), "at once");
    assert_eq!(state.objection(None), None);
    state.lost(0, 2, "it ended");
    assert_eq!(look(), (false, 0), "what failed before it was up counts no more");
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_is_up_is_not_taken_for_its_predecessor() {
    let state = state(1);
    state.up(0, 1, "a token");
    state.up(0, 2, "a token");
    state.lost(0, 1, "it was tired");
    assert_eq!((state.trouble(false), state.away_for()), (None, None));
    state.start_failed(0, 3, refusal(Away::Died, "it ended without a word"));
    assert!(!*state.breaker().borrow(), "the one that is there goes on");
    assert_eq!(away(&state, Away::Died), 0);
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_told_why_since_when_and_what_to_do() {
    let state = state(2);
    assert_eq!(state.trouble(false), None, "they are being started");
    state.start_failed(0, 1, refusal(Away::TokenAway, "no token is labelled bank"));
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(
        state.trouble(false).unwrap(),
        "the HSM cannot be used for 7 s (token-away): no token is labelled bank; see that the HSM is connected and has \
         this token; it is tried again by itself each second"
    );
    // What may be a second token of the same name would make the first one's keys useless.
    state.was_used();
    assert!(state.trouble(false).unwrap().contains("do not run `hsm-authd init`"));
    for (cause, said) in [
        (Away::Configuration, "mend that"),
        (Away::Module, "set up as its vendor says"),
        (Away::Login, "what the HSM says of this user"),
        (Away::PinRefused, "correct the PIN file"),
        (Away::Keys, "do not run `hsm-authd init`"),
        (Away::SelfTest, "does not work as it should"),
        (Away::Hangs, "can be reached"),
        (Away::Died, "crashed"),
    ] {
        state.start_failed(0, 1, refusal(cause, "so it is"));
        let told = state.trouble(false).unwrap();
        assert!(told.contains(said) && told.contains("7 s") && told.contains("so it is"), "{told}");
        assert_eq!(told.contains("tried again by itself"), cause != Away::PinRefused, "{told}");
    }

    state.up(1, 1, "a token");
    assert_eq!(state.trouble(false), None);
    assert_eq!(state.missing(), "custodian 0 is away for 7 s (died): so it is\n");
    tokio::time::advance(Duration::from_secs(3)).await;
    state.lost(1, 1, "it missed its deadline");
    assert_eq!(
        state.trouble(false).unwrap(),
        "no custodian is up for 0 s: the last was lost (it missed its deadline); others are being started"
    );
    assert_eq!(state.away_for(), Some(Duration::ZERO), "since the last was lost");
}

#[tokio::test(start_paused = true)]
async fn each_place_is_counted_under_what_keeps_it_empty() {
    let state = state(3);
    assert_eq!(away(&state, Away::Starting), 3);
    state.up(0, 1, "a token");
    state.start_failed(1, 1, refusal(Away::Hangs, "it hangs"));
    state.start_failed(1, 2, refusal(Away::Hangs, "it hangs"));
    let counts = [Away::Starting, Away::Hangs, Away::Lost].map(|cause| away(&state, cause));
    assert_eq!(counts, [1, 1, 0]);
    assert_eq!(state.metrics.start_failures.get_or_create(&Away::Hangs).get(), 2);
    state.lost(0, 1, "it ended");
    state.up(1, 3, "a token");
    let counts = [Away::Starting, Away::Hangs, Away::Lost].map(|cause| away(&state, cause));
    assert_eq!(counts, [1, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_reason_is_logged_once_and_again_after_a_while_and_not_too_many_are() {
    let mut outage = Outage::new(Instant::now());
    assert!(outage.is_to_be_told("one") && outage.is_to_be_told("another"));
    tokio::time::advance(TELL_EVERY / 2).await;
    assert!(!outage.is_to_be_told("one"));
    tokio::time::advance(TELL_EVERY / 2).await;
    assert!(outage.is_to_be_told("one") && !outage.is_to_be_told("one"));
    let told = (0..100).filter(|number| outage.is_to_be_told(&number.to_string())).count();
    assert_eq!(told, TOLD_MAX - 2);
}
