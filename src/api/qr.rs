//! QR codes as pictures, and which picture a request asks for.

use std::fmt::Write;

use axum::body::Bytes;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use qrcode::bits::Bits;
use qrcode::{Color, EcLevel, QrCode, Version};
use zeroize::Zeroizing;

use crate::metrics::Verdict;

use super::Api;
use super::problem::Problem;

/// What is tried first. A code on a screen is not torn or soiled: H, the level above Q, would buy nothing and
/// cost modules, which makes each of them smaller to a camera.
const LEVELS: [EcLevel; 3] = [EcLevel::Q, EcLevel::M, EcLevel::L];
/// Modules of light all around (ISO/IEC 18004, section 6.3.8).
const QUIET_MODULES: usize = 4;
/// A picture's pixels for a module's width: half a byte of a PNG's row. The largest code is 740 pixels wide,
/// which a screen still shows whole.
const MODULE_PIXELS: usize = 4;

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Picture {
    Svg,
    Png,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub(super) enum QrError {
    /// More than `QR_BYTES_MAX`.
    #[error("a QR code does not hold so long a text")]
    TooLong,
    /// Memory takes what is written to it, so this says that the encoder was used wrongly.
    #[error("the picture was not written: {0}")]
    Png(#[from] png::EncodingError),
}

impl Picture {
    /// Its media type.
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::Svg => "image/svg+xml",
            Self::Png => "image/png",
        }
    }
}

/// The answer that is this text as a QR code, drawn where nobody waits for the thread.
pub(super) async fn picture(
    api: &Api,
    text: Zeroizing<String>,
    picture: Picture,
) -> Result<Response, Problem> {
    let drawn = api.drawing.run(move || draw(&text, picture)).await?;
    let bytes = drawn.map_err(|error: QrError| Problem::unavailable(error, 60))?;
    let mut response = bytes.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(Picture::media_type(picture)));
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response.extensions_mut().insert(Verdict::Found);
    Ok(response)
}

/// Which picture an `Accept` header asks for (RFC 9110, section 12.5.1); SVG when it does not matter. `None`:
/// neither is acceptable. What cannot be read asks for nothing. Parameters other than `q` change nothing.
pub(super) fn preferred(accept: &HeaderMap) -> Option<Picture> {
    let values = accept.get_all(ACCEPT).iter();
    // A value that is no ASCII is there, but names no picture.
    let ranges: Vec<&str> = values
        .flat_map(|value| value.to_str().unwrap_or("unreadable").split(','))
        .map(|range| range.trim_matches([' ', '\t']))
        .filter(|range| !range.is_empty())
        .collect();
    if ranges.is_empty() {
        return Some(Picture::Svg);
    }
    let weights: Vec<(&str, u16)> = ranges.into_iter().filter_map(weighted).collect();
    let weight = |picture: Picture| {
        // The most specific range that names it decides, though a wider one may weigh more.
        [picture.media_type(), "image/*", "*/*"].iter().find_map(|name| {
            let same = weights.iter().filter(|(range, _)| range.eq_ignore_ascii_case(name));
            same.map(|(_, weight)| *weight).max()
        })
    };
    let (svg, png) = (weight(Picture::Svg).unwrap_or(0), weight(Picture::Png).unwrap_or(0));
    match (svg, png) {
        (0, 0) => None,
        _ if svg >= png => Some(Picture::Svg),
        _ => Some(Picture::Png),
    }
}

/// A media range without its parameters, and its weight in thousandths.
fn weighted(range: &str) -> Option<(&str, u16)> {
    let mut parts = range.split(';').map(|part| part.trim_matches([' ', '\t']));
    let name = parts.next()?;
    let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    Some((name, q.map_or(Some(1_000), thousandths)?))
}

/// A `qvalue` (RFC 9110, section 12.4.2): 0 to 1 with at most three digits behind the point.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{whole}{fraction:0<3}").parse().ok().filter(|weight| *weight <= 1_000)
}

/// `text`, which has to be ASCII for every reader to agree on it, as a QR code: of the highest error correction
/// level, up to Q, that holds it, and as small as that level allows. The same text is always the same bytes.
/// It computes for up to 20 ms, most of it trying masks: call it where nobody waits for the thread.
///
/// # Errors
/// It is longer than `QR_BYTES_MAX`.
pub(super) fn draw(text: &str, picture: Picture) -> Result<Bytes, QrError> {
    let code = encoded(text.as_bytes()).ok_or(QrError::TooLong)?;
    let rows = rows(&code);
    match picture {
        Picture::Svg => Ok(svg(&rows).into()),
        Picture::Png => png(&rows),
    }
}

/// Always in byte mode, so that the length alone decides whether it fits, and not which characters they are.
fn encoded(text: &[u8]) -> Option<QrCode> {
    let sizes = LEVELS.into_iter().flat_map(|level| (1..=40).map(move |n| (level, Version::Normal(n))));
    sizes.into_iter().find_map(|(level, version)| {
        let mut bits = Bits::new(version);
        // Most sizes are too small, which needs no encoding to know.
        if bits.max_len(level).ok()? / 8 < text.len() {
            return None;
        }
        bits.push_byte_data(text).ok()?;
        bits.push_terminator(level).ok()?;
        QrCode::with_bits(bits, level).ok()
    })
}

/// Which modules are dark, row by row, the quiet zone included.
fn rows(code: &QrCode) -> Vec<Vec<bool>> {
    let width = code.width() + 2 * QUIET_MODULES;
    let quiet = || std::iter::repeat_n(vec![false; width], QUIET_MODULES);
    let colours = code.to_colors();
    let drawn = colours.chunks(code.width()).map(|row| {
        let mut modules = vec![false; QUIET_MODULES];
        modules.extend(row.iter().map(|colour| *colour == Color::Dark));
        modules.resize(width, false);
        modules
    });
    quiet().chain(drawn).chain(quiet()).collect()
}

/// One path, stroked a module wide: each run of dark modules is a line through their middles, reached from
/// the end of the one before it. A sixth of the size that the crate's own rectangle for each module takes.
fn svg(rows: &[Vec<bool>]) -> String {
    let (modules, pixels) = (rows.len(), rows.len() * MODULE_PIXELS);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{pixels}\" height=\"{pixels}\" \
         viewBox=\"0 0 {modules} {modules}\" shape-rendering=\"crispEdges\">\
         <rect width=\"{modules}\" height=\"{modules}\" fill=\"#fff\"/><path stroke=\"#000\" d=\""
    );
    for (y, row) in rows.iter().enumerate() {
        let mut x = 0;
        let mut pen = None;
        for run in row.chunk_by(|a, b| a == b) {
            if run.first() == Some(&true) {
                // Writing to a string cannot fail.
                let _ = match pen {
                    None => write!(svg, "M{x} {y}.5h{}", run.len()),
                    Some(pen) => write!(svg, "m{} 0h{}", x - pen, run.len()),
                };
                pen = Some(x + run.len());
            }
            x += run.len();
        }
    }
    svg.push_str("\"/></svg>\n");
    svg
}

/// One bit a pixel, in grey: 1 is light.
fn png(rows: &[Vec<bool>]) -> Result<Bytes, QrError> {
    let pixels = u32::try_from(rows.len() * MODULE_PIXELS).unwrap_or(u32::MAX);
    let half = |dark: Option<&bool>| if dark == Some(&true) { 0 } else { 0xf };
    let mut data = Vec::new();
    for row in rows {
        let line: Vec<u8> = row.chunks(2).map(|pair| half(pair.first()) << 4 | half(pair.get(1))).collect();
        for _ in 0..MODULE_PIXELS {
            data.extend_from_slice(&line);
        }
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, pixels, pixels);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&data)?;
    writer.finish()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests;
