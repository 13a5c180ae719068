//! QR codes: drawn in the terminal, and read from a picture as a camera would.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use qrcode::{Color, EcLevel, QrCode};

use crate::{Outcome, words};

/// As wide as the transcript's lines.
const COLUMNS_MAX: usize = 100;

/// `text` as a QR code of half blocks, two rows of modules to a line, without error correction to spare and with one
/// module of light around it instead of four: as small as can be. `None` if it is wider than the transcript all
/// the same. The blocks are what is light, as they are on a dark terminal; on a light one the code is inverted,
/// which not every reader takes.
pub fn terminal(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let (width, side) = (code.width(), code.width() + 2);
    if side > COLUMNS_MAX {
        return None;
    }
    let drawn = 1..=width;
    let is_light = |x: usize, y: usize| {
        !drawn.contains(&x) || !drawn.contains(&y) || code[(x - 1, y - 1)] == Color::Light
    };
    let block = |x: usize, y: usize| match (is_light(x, y), is_light(x, y + 1)) {
        (true, true) => '\u{2588}',
        (true, false) => '\u{2580}',
        (false, true) => '\u{2584}',
        (false, false) => ' ',
    };
    let line = |y: usize| (0..side).map(|x| block(x, y)).collect::<String>();
    Some((0..side).step_by(2).map(line).collect::<Vec<_>>().join("\n"))
}

/// What zbarimg reads in a picture; `None` where there is no zbarimg.
pub fn scanned(picture: &Path) -> Outcome<Option<String>> {
    let output = match Command::new("zbarimg").args(["--quiet", "--raw"]).arg(picture).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        output => output.map_err(words)?,
    };
    Ok(Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()))
}
