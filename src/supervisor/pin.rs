//! Whether a token's PIN may be tried: one that was refused never is again, until somebody writes another one.
//!
//! Each attempt with a wrong PIN could be the one that locks the token. Whoever starts a custodian, and for whatever reason,
//! asks here.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::refused_pin::Marked;
use crate::hsm::messages::PinFile;

/// What is known of one token's PIN.
#[derive(Debug, Default)]
pub(super) struct PinRule {
    verdict: Verdict,
}

#[derive(Debug, Default)]
enum Verdict {
    /// It was accepted, or never tried.
    #[default]
    Open,
    /// Somebody was cut off with this one in the token's hands. It is tried once more.
    Doubted(PinFile),
    /// That happened again. It is not tried any more: nobody tells a reload of an operator's from one of a timer's.
    DoubtedAgain(PinFile),
    /// It was refused; `None`: nobody knows which file that was.
    Refused(Option<PinFile>),
    /// An earlier start was refused, and nobody can tell whether this is another one.
    Barred,
}

impl PinRule {
    /// The token refused it.
    pub fn refused(&mut self, file: Option<PinFile>) {
        self.verdict = Verdict::Refused(file);
    }

    /// As an earlier start has left it.
    pub fn marked(marked: Option<Marked>) -> Self {
        let verdict = match marked {
            None => Verdict::Open,
            Some(Marked::File(file)) => Verdict::Refused(Some(file)),
            Some(Marked::Any) => Verdict::Barred,
        };
        Self { verdict }
    }

    /// It may have been refused. Whether it is not tried any more by itself.
    pub fn doubted(&mut self, file: PinFile) -> bool {
        self.verdict = match self.verdict {
            Verdict::Refused(_) | Verdict::Barred => return true,
            Verdict::Doubted(before) | Verdict::DoubtedAgain(before) if before == file => {
                Verdict::DoubtedAgain(file)
            }
            _ => Verdict::Doubted(file),
        };
        matches!(self.verdict, Verdict::DoubtedAgain(_))
    }

    /// The token accepted the one that was tried last.
    pub fn accepted(&mut self) {
        self.verdict = Verdict::Open;
    }

    /// Which one somebody was cut off with: a custodian does not try it if the token says that it has refused one.
    pub fn cut_off(&self) -> Option<PinFile> {
        match self.verdict {
            Verdict::Doubted(file) | Verdict::DoubtedAgain(file) => Some(file),
            Verdict::Open | Verdict::Refused(_) | Verdict::Barred => None,
        }
    }

    /// Whether it takes another file than the last one.
    pub fn needs_another(&self) -> bool {
        matches!(self.verdict, Verdict::DoubtedAgain(_) | Verdict::Refused(_) | Verdict::Barred)
    }

    /// Whether the token refused it.
    pub fn is_refused(&self) -> bool {
        matches!(self.verdict, Verdict::Refused(_) | Verdict::Barred)
    }

    /// Whether this one may be tried; `None`: there is none now.
    pub fn allows(&self, file: Option<PinFile>) -> bool {
        match self.verdict {
            Verdict::Open | Verdict::Doubted(_) => true,
            Verdict::DoubtedAgain(before) => file.is_some_and(|file| file != before),
            Verdict::Refused(before) => file.is_some() && file != before,
            Verdict::Barred => false,
        }
    }
}

/// Which PIN is in a file now; `None`: there is no such file.
pub(super) fn look(path: &Path) -> Option<PinFile> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(PinFile {
        inode: metadata.ino(),
        modified_unix_s: metadata.mtime(),
        modified_ns: metadata.mtime_nsec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> PinFile {
        PinFile { inode, modified_unix_s: 1, modified_ns: 2 }
    }

    #[test]
    fn a_refused_pin_is_tried_again_by_nobody_and_another_one_is() {
        let mut rule = PinRule::default();
        assert!(rule.allows(Some(file(1))) && !rule.needs_another());
        rule.refused(Some(file(1)));
        assert!(rule.is_refused() && rule.needs_another());
        assert!(!rule.allows(Some(file(1))) && !rule.allows(None));
        for other in
            [file(2), PinFile { modified_unix_s: 2, ..file(1) }, PinFile { modified_ns: 3, ..file(1) }]
        {
            assert!(rule.allows(Some(other)), "{other:?}");
        }
        rule.refused(Some(file(2)));
        assert!(!rule.allows(Some(file(2))));
        assert!(rule.doubted(file(2)), "what is known is worth more than a doubt");
        assert!(rule.is_refused());
        rule.accepted();
        assert!(!rule.is_refused() && rule.allows(Some(file(2))));
    }

    #[test]
    fn what_an_earlier_start_was_refused_is_not_tried_by_the_next() {
        assert!(PinRule::marked(None).allows(Some(file(1))));
        let rule = PinRule::marked(Some(Marked::File(file(1))));
        assert!(rule.is_refused() && !rule.allows(Some(file(1))) && rule.allows(Some(file(2))));
        let mut rule = PinRule::marked(Some(Marked::Any));
        assert!(rule.doubted(file(2)));
        assert!(rule.is_refused() && rule.needs_another());
        assert!(!rule.allows(Some(file(1))) && !rule.allows(None));
    }

    #[test]
    fn one_that_may_have_been_refused_is_tried_once_more_and_then_no_more() {
        let mut rule = PinRule::default();
        assert_eq!(rule.cut_off(), None);
        assert!(!rule.doubted(file(1)) && rule.allows(Some(file(1))) && !rule.needs_another());
        assert_eq!(rule.cut_off(), Some(file(1)), "the custodian has to know");
        assert!(!rule.doubted(file(2)), "that is another one");
        assert!(rule.doubted(file(2)));
        assert!(rule.needs_another() && !rule.is_refused());
        assert!(!rule.allows(Some(file(2))) && !rule.allows(None) && rule.allows(Some(file(3))));
        rule.accepted();
        assert!(!rule.doubted(file(2)), "its turn of doubt is over");
    }

    #[test]
    fn a_file_that_was_written_again_is_another_one() {
        let dir = std::env::temp_dir().join(format!("hsm-authd-pin-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("pin");
        assert_eq!(look(&path), None);
        std::fs::write(&path, "0000").unwrap();
        let first = look(&path);
        assert!(first.is_some() && first == look(&path));
        let other = dir.join("new");
        std::fs::write(&other, "0000").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(look(&path), first);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
