//! Which entries of the log tell a verdict.

use super::Event;

/// What became of what somebody presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was right.
    Accepted,
    /// It was wrong, was used before, or came once too often.
    Refused,
}

impl Verdict {
    /// As exports and the API spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
        }
    }
}

impl Event {
    /// The verdict on a code, a signature or a password that the event tells; `None`: it tells of something else, or
    /// of what is not worth a verdict yet.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Verified
            | Self::Resynced
            | Self::SignatureVerified
            | Self::TransactionApproved
            | Self::UplinkSeen
            | Self::Authorized
            | Self::Activated
            | Self::ActivationRepeated
            | Self::CodeRepeated
            | Self::CodeAcknowledged => Some(Verdict::Accepted),
            Self::Refused
            | Self::Repeated
            | Self::ResyncRefused
            | Self::SignatureRefused
            | Self::TransactionRefused
            | Self::TransactionFailed
            | Self::TransactionRepeated
            | Self::PresentationRefused
            | Self::AuthorizationRefused
            | Self::ActivationRefused
            | Self::RotationRefused
            | Self::PasswordUnknown => Some(Verdict::Refused),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_refused_is() {
        for event in Event::ALL {
            let name = event.name();
            let said = name.ends_with("refused").then_some(Verdict::Refused);
            let said = said.or(name.ends_with("verified").then_some(Verdict::Accepted));
            assert!(said.is_none() || event.verdict() == said, "{name}");
        }
        assert_eq!(Event::TransactionEntered.verdict(), None, "not told before the last code");
    }
}
