//! `Suite::parse`, and of a suite that parses its challenges and data inputs.

use hsm_authd::domain::ocra::{Challenge, QuestionKind, Suite, data_input};
use hsm_authd::domain::otp::Algorithm;

/// Three lines: a suite, a question, and a session, which is what follows and may be missing. Without a
/// line feed it is all suite.
pub fn run(input: &[u8]) {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let Some(Ok(text)) = lines.next().map(std::str::from_utf8) else { return };
    let suite = match Suite::parse(text) {
        Ok(suite) => suite,
        Err(rule) => return assert!(rule.starts_with("suite must be"), "a refusal says the rule"),
    };
    assert_eq!(suite.as_str(), text, "the text is kept");
    assert_eq!(spelled(&suite), text, "nothing of it was lost or taken for something else");
    let json = serde_json::to_string(&suite).expect("JSON");
    assert_eq!(serde_json::from_str::<Suite>(&json).expect("a suite"), suite, "it survives a message");

    let Some(Ok(question)) = lines.next().map(std::str::from_utf8) else { return };
    let session = lines.next();
    let Ok(challenge) = Challenge::new(&suite, question, session) else { return };
    let twice = usize::from(suite.question().length) * 2;
    assert!((1..=twice).contains(&question.len()) && question.is_ascii(), "the question fits the suite");
    assert_eq!(session.is_some(), suite.session_bytes().is_some(), "a session if the suite has one");
    let frame = postcard::to_allocvec(&challenge).expect("postcard");
    assert_eq!(postcard::from_bytes::<Challenge>(&frame).expect("one"), challenge, "it survives a message");
    // Hexadecimal questions have two cases, the others one spelling or one case.
    if suite.question().kind != QuestionKind::Alphanumeric {
        let lower = Challenge::new(&suite, &question.to_ascii_lowercase(), session).expect("as good");
        assert_eq!(lower.fingerprint(Some(1)), challenge.fingerprint(Some(1)), "upper and lower case");
    }
    assert_ne!(challenge.fingerprint(None), challenge.fingerprint(Some(0)), "a time step is told apart");

    let counter = suite.has_counter().then_some(u64::MAX);
    let step = suite.time_step_s().map(|_| 1);
    let pin_hash = suite.pin_hash().map(|hash| vec![0xa5; hash.output_bytes()]);
    let message = data_input(&suite, &challenge, counter, pin_hash.as_deref(), step).expect("every input");
    let inputs = [
        text.len() + 1,
        counter.map_or(0, |_| 8),
        128,
        suite.pin_hash().map_or(0, Algorithm::output_bytes),
        suite.session_bytes().map_or(0, usize::from),
        step.map_or(0, |_| 8),
    ];
    assert_eq!(message.len(), inputs.iter().sum::<usize>());
    assert_eq!(message.split_at(text.len() + 1).0, [text.as_bytes(), b"\0"].concat(), "the suite first");
    // The session is at its end, but for the time.
    let padded = &message[..message.len() - inputs[5]];
    assert!(session.is_none_or(|session| padded.ends_with(session)), "the session is whole");
    let unwanted = [
        data_input(&suite, &challenge, None, pin_hash.as_deref(), step).is_ok() == counter.is_none(),
        data_input(&suite, &challenge, counter, None, step).is_ok() == pin_hash.is_none(),
        data_input(&suite, &challenge, counter, pin_hash.as_deref(), None).is_ok() == step.is_none(),
        data_input(&suite, &challenge, counter, Some(&[]), step).is_err(),
    ];
    assert_eq!(unwanted, [true; 4], "the inputs are the suite's");
}

/// The text that a suite's fields make.
fn spelled(suite: &Suite) -> String {
    let kind = match suite.question().kind {
        QuestionKind::Numeric => 'N',
        QuestionKind::Alphanumeric => 'A',
        QuestionKind::Hexadecimal => 'H',
    };
    let counter = if suite.has_counter() { "C-" } else { "" };
    let mut text = format!(
        "OCRA-1:HOTP-{}-{}:{counter}Q{kind}{:02}",
        suite.algorithm().name(),
        u8::from(suite.digits()),
        suite.question().length,
    );
    text.extend(suite.pin_hash().map(|hash| format!("-P{}", hash.name())));
    text.extend(suite.session_bytes().map(|bytes| format!("-S{bytes:03}")));
    text.extend(suite.time_step_s().map(|step_s| match step_s {
        0..60 => format!("-T{step_s}S"),
        60..3_600 => format!("-T{}M", step_s / 60),
        _ => format!("-T{}H", step_s / 3_600),
    }));
    text
}
