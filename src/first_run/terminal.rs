//! Questions to whoever sits at a terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// What Ctrl-C types.
const INTERRUPT: u8 = 3;
/// The longest answer, in bytes.
const LINE_BYTES_MAX: usize = 4_096;

/// Standard input, if somebody sits there. It is read past its buffer: of a PIN nothing stays there.
pub struct Terminal(File);

impl Terminal {
    /// `None`: nobody is there to be asked.
    pub fn of_stdin() -> Option<Self> {
        let stdin = io::stdin();
        let is_terminal = stdin.is_terminal();
        stdin.as_fd().try_clone_to_owned().ok().filter(|_| is_terminal).map(|fd| Self(fd.into()))
    }

    /// Asks until the answer is one. An empty one is the default, if there is one.
    ///
    /// # Errors
    /// Nobody answers any more.
    pub fn ask<T>(
        &self,
        question: &str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, String> {
        let shown = default.map(|default| format!(" [{default}]")).unwrap_or_default();
        loop {
            prompt(&format!("{question}{shown}: "))?;
            let line = self.line()?;
            let parsed = match std::str::from_utf8(&line).map(str::trim) {
                Ok("") => parse(default.unwrap_or_default()),
                Ok(text) => parse(text),
                Err(_) => Err("it is not UTF-8".to_owned()),
            };
            match parsed {
                Ok(answer) => return Ok(answer),
                Err(reason) => prompt(&format!("  {reason}\n"))?,
            }
        }
    }

    /// Asks twice for what is not to be seen, until both are the same.
    ///
    /// # Errors
    /// Nobody answers any more.
    pub fn ask_hidden(&self, question: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        let _hidden = Hidden::begin(self)?;
        loop {
            prompt(&format!("{question} (it is not shown): "))?;
            let first = self.line()?;
            prompt("once more: ")?;
            match self.line()? {
                again if again != first => prompt("  they are not the same\n")?,
                again if again.is_empty() => prompt("  it cannot be empty\n")?,
                again => return Ok(again),
            }
        }
    }

    /// Without its end.
    fn line(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        // One place in memory, never grown. A terminal gives a line at once.
        let mut line = Zeroizing::new(vec![0; LINE_BYTES_MAX]);
        let length = (&self.0).read(&mut line).map_err(|e| format!("the terminal: {e}"))?;
        line.truncate(length);
        match line.last() {
            Some(b'\n') => {
                line.truncate(length.saturating_sub(1));
                Ok(line)
            }
            _ => Err("nothing was made: not all was answered; each question has an option, too (hsm-authd init --help)".into()),
        }
    }
}

/// A terminal that does not show what is typed. Ctrl-C would end the process with it left so: here it ends the line.
struct Hidden<'a>(&'a Terminal, Termios);

impl<'a> Hidden<'a> {
    fn begin(terminal: &'a Terminal) -> Result<Self, String> {
        let failed = |e: nix::Error| format!("the terminal cannot be kept from showing a PIN: {e}");
        let before = tcgetattr(&terminal.0).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        hidden.local_flags.insert(LocalFlags::ECHONL);
        if let Some(end) = hidden.control_chars.get_mut(SpecialCharacterIndices::VEOL as usize) {
            *end = INTERRUPT;
        }
        tcsetattr(&terminal.0, SetArg::TCSAFLUSH, &hidden).map_err(failed)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.0.0, SetArg::TCSAFLUSH, &self.1);
    }
}

/// On standard error, so that standard output has what was done.
fn prompt(text: &str) -> Result<(), String> {
    io::stderr().write_all(text.as_bytes()).map_err(|e| format!("standard error: {e}"))
}
