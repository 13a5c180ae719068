//! What the tokens know of the log, as a start and a command on a database at rest read it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::anchors::{Anchors, Judged, Seen, judge};
use crate::hsm::HsmError;
use crate::service::Service;
use crate::service::log::{REMEDY, REMOVED, of_token, parse, while_there};
use crate::service::patience::{ASK_AGAIN_AFTER, PATIENCE, Patience};

/// How long a start waits for the other tokens once one is up: custodians are started one after the other.
const OTHERS_MAX: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Service {
    /// Reads the anchor of every token that is there, and waits as long as none of them can decide.
    ///
    /// # Errors
    /// One line: a token has none, or none of them answers.
    pub(in crate::service) async fn read_anchors(&self) -> Result<Anchors, String> {
        self.await_tokens().await;
        let mut patience = Patience::new(&self.hsm, PATIENCE);
        let ended = loop {
            let (seen, failure) = self.see_anchors().await?;
            let is_one_there = seen.iter().any(|seen| *seen != Seen::Away);
            match judge(seen) {
                Judged::Decided(anchors) => break Ok(anchors),
                Judged::Removed(token) => {
                    break Err(of_token(&self.hsm, token, format!("{REMOVED}; {REMEDY}")));
                }
                Judged::Undecided if is_one_there => {
                    let reason = self.waits_for_another();
                    if !self.hsm.waits_for_tokens() {
                        break Err(reason);
                    }
                    self.log.wait_for(Some(reason));
                    sleep(ASK_AGAIN_AFTER).await;
                    // As long as it takes.
                    patience = Patience::new(&self.hsm, PATIENCE);
                }
                Judged::Undecided => {
                    if !patience.again(ASK_AGAIN_AFTER).await {
                        let away = || HsmError::Unavailable("no token is there".to_owned());
                        break Err(failure.unwrap_or_else(away).to_string());
                    }
                    self.await_tokens().await;
                }
            }
        };
        self.log.wait_for(None);
        ended
    }

    /// Returns when every token is there or has failed to come up, or some time after one was.
    async fn await_tokens(&self) {
        let all = 0..self.hsm.tokens();
        if !self.hsm.waits_for_tokens() || all.len() == 1 {
            return;
        }
        let mut deadline = Instant::now() + OTHERS_MAX;
        while !all.clone().all(|token| self.hsm.is_token_up(token) || self.hsm.has_token_failed(token))
            && Instant::now() < deadline
        {
            sleep(LOOK_EVERY).await;
            if !self.hsm.is_up() {
                deadline = Instant::now() + OTHERS_MAX;
            }
        }
    }

    /// What each token says, and why one did not answer.
    pub(in crate::service) async fn see_anchors(&self) -> Result<(Vec<Seen>, Option<HsmError>), String> {
        let (hsm, mut seen, mut failure) = (&self.hsm, Vec::new(), None);
        for token in 0..hsm.tokens() {
            seen.push(match while_there(hsm, token, hsm.read_anchor(token)).await {
                Ok(Some(note)) => Seen::Anchor(parse(&note).map_err(|reason| of_token(hsm, token, reason))?),
                Ok(None) => Seen::Nothing,
                Err(error @ (HsmError::Busy | HsmError::Unavailable(_) | HsmError::Away(_))) => {
                    failure = Some(error);
                    Seen::Away
                }
                Err(error) => return Err(error.to_string()),
            });
        }
        Ok((seen, failure))
    }

    /// For whom a start waits.
    fn waits_for_another(&self) -> String {
        let (there, away): (Vec<_>, Vec<_>) =
            (0..self.hsm.tokens()).partition(|token| self.hsm.is_token_up(*token));
        let names = |tokens: Vec<usize>| {
            tokens.into_iter().map(|token| self.hsm.token_name(token)).collect::<Vec<_>>().join(", ")
        };
        format!(
            "the anchor of token {} is new and tells nothing of any log, so one of the others has to: bring token {} back \
             (docs/integrity.md)",
            names(there),
            names(away)
        )
    }

    /// Which token a start waits for, and why; `None`: none.
    pub fn waits_for(&self) -> Option<String> {
        self.log.waits_for()
    }
}
