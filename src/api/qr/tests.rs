//! Pictures are read again here: by the png crate, and by `zbarimg` as a phone would.

use std::io::Write;
use std::process::{Command, Stdio};

use axum::http::{HeaderMap, HeaderValue};

use super::*;
use crate::domain::qr::QR_BYTES_MAX;

/// Base64url and two dots, as a compact JWS has them, never the same twice in a row.
fn jws(length: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = 1_u64;
    let letter = |at| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dot = length > 100 && (at == 80 || at == length - 87);
        if dot { '.' } else { char::from(ALPHABET[(state >> 58) as usize]) }
    };
    (0..length).map(letter).collect()
}

#[test]
fn the_header_decides_which_picture() {
    let (svg, png) = (Some(Picture::Svg), Some(Picture::Png));
    let table: &[(&[&str], Option<Picture>)] = &[
        (&[], svg),
        (&[""], svg),
        (&[" , "], svg),
        (&["*/*"], svg),
        (&["image/*"], svg),
        (&["image/svg+xml"], svg),
        (&["image/png"], png),
        (&["IMAGE/PNG"], png),
        (&["image/png, image/svg+xml"], svg),
        (&["image/png,image/svg+xml;q=0.9"], png),
        (&["image/png;q=0.001, image/svg+xml;q=0.002"], svg),
        (&["image/png \t;\t q=0.2 , image/svg+xml ; Q=0.1"], png),
        (&["image/png;q=1.000, image/svg+xml;q=0.999"], png),
        (&["image/png;q=0."], None),
        (&["image/png;q=1."], png),
        // The most specific range counts, not the largest weight.
        (&["image/*, image/svg+xml;q=0.1"], png),
        (&["*/*;q=0.9, image/*;q=0.5, image/png;q=0.7"], png),
        (&["*/*, image/svg+xml;q=0"], png),
        (&["image/*;q=0, */*"], None),
        (&["image/*;q=0, image/png;q=0.1"], png),
        (&["*/*;q=0"], None),
        (&["image/svg+xml;q=0, image/png;q=0.000"], None),
        (&["image/svg+xml;q=0"], None),
        (&["image/jpeg"], None),
        (&["text/html, application/json"], None),
        (&["text/html, */*;q=0.1"], svg),
        // What a browser sends for an <img>.
        (&["image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"], svg),
        (&["image/avif,image/webp,image/png,image/*;q=0.8,*/*;q=0.5"], png),
        // Several headers are one list.
        (&["image/svg+xml;q=0.5", "image/png"], png),
        (&["text/html", "image/png"], png),
        (&["image/png;version=1;q=0.5"], png),
        (&["image/svg+xml;charset=utf-8;q=0.4, image/png;q=0.3"], svg),
        // What cannot be read asks for nothing.
        (&["image/png;q=2"], None),
        (&["image/png;q=1.001"], None),
        (&["image/png;q=0.1234"], None),
        (&["image/png;q=-1"], None),
        (&["image/png;q=+1"], None),
        (&["image/png;q="], None),
        (&["image/png;q=high, image/svg+xml;q=0.1"], svg),
        (&["image"], None),
        (&["*"], None),
        (&["*/png"], None),
        (&["image/png\u{e9}"], None),
        (&[";q=1"], None),
        (&["image/pngx"], None),
    ];
    for (values, expected) in table {
        let mut headers = HeaderMap::new();
        for value in *values {
            headers.append(ACCEPT, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        assert_eq!(preferred(&headers), *expected, "{values:?}");
    }
}

#[test]
fn the_level_is_the_highest_that_holds_the_text_and_the_code_the_smallest_of_that_level() {
    use EcLevel::{L, M, Q};
    // Capacities in byte mode: ISO/IEC 18004, table 7.
    for (length, level, version) in [
        (0, Q, 1),
        (1, Q, 1),
        (11, Q, 1),
        (12, Q, 2),
        (100, Q, 8),
        (1_000, Q, 31),
        (1_663, Q, 40),
        (1_664, M, 34),
        (2_331, M, 40),
        (2_332, L, 36),
        (2_953, L, 40),
    ] {
        let code = encoded(jws(length).as_bytes()).unwrap();
        let found = (code.error_correction_level(), code.version());
        assert_eq!(found, (level, Version::Normal(version)), "{length} bytes");
    }
    assert!(encoded(jws(QR_BYTES_MAX).as_bytes()).is_some());
    assert!(encoded(jws(QR_BYTES_MAX + 1).as_bytes()).is_none());
}

#[test]
fn the_length_alone_decides_whether_it_fits() {
    // Digits alone would fit in 7089, were they not bytes like all others.
    for text in ["7", "A", "~"] {
        assert!(draw(&text.repeat(QR_BYTES_MAX), Picture::Png).is_ok());
        for picture in [Picture::Png, Picture::Svg] {
            let answer = draw(&text.repeat(QR_BYTES_MAX + 1), picture);
            assert!(matches!(answer, Err(QrError::TooLong)), "{text}");
        }
    }
}

/// The modules of a PNG: every pixel of one has to be of one colour.
fn modules_of_png(png: &[u8]) -> Vec<Vec<bool>> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Grayscale, png::BitDepth::One));
    assert_eq!(info.width, info.height);
    let width = info.width as usize;
    let dark = |x: usize, y: usize| data[y * info.line_size + x / 8] & (0x80 >> (x % 8)) == 0;
    let mut rows = vec![vec![false; width / MODULE_PIXELS]; width / MODULE_PIXELS];
    for (y, row) in rows.iter_mut().enumerate() {
        for (x, module) in row.iter_mut().enumerate() {
            let (left, top) = (x * MODULE_PIXELS, y * MODULE_PIXELS);
            *module = dark(left, top);
            let all = (0..MODULE_PIXELS * MODULE_PIXELS)
                .all(|n| dark(left + n % MODULE_PIXELS, top + n / MODULE_PIXELS) == *module);
            assert!(all, "the module at {x}, {y} has two colours");
        }
    }
    rows
}

#[test]
fn a_png_shows_the_code_inside_a_quiet_zone() {
    for length in [1, 100, 1_000, 2_331, 2_332, 2_953] {
        let text = jws(length);
        let png = draw(&text, Picture::Png).unwrap();
        let shown = modules_of_png(&png);
        let code = encoded(text.as_bytes()).unwrap();
        assert_eq!(shown.len(), code.width() + 8);
        for (y, row) in shown.iter().enumerate() {
            for (x, dark) in row.iter().enumerate() {
                let inside = 4..code.width() + 4;
                let drawn = inside.contains(&x) && inside.contains(&y);
                let expected = drawn && code[(x - 4, y - 4)] == Color::Dark;
                assert_eq!(*dark, expected, "{length} bytes, the module at {x}, {y}");
            }
        }
    }
}

#[test]
fn the_same_text_is_the_same_bytes() {
    for picture in [Picture::Svg, Picture::Png] {
        assert_eq!(draw(&jws(700), picture).unwrap(), draw(&jws(700), picture).unwrap());
        assert_ne!(draw(&jws(700), picture).unwrap(), draw(&jws(701), picture).unwrap());
    }
}

#[test]
fn an_svg_is_a_white_square_and_one_path() {
    let svg = String::from_utf8(draw("7", Picture::Svg).unwrap().to_vec()).unwrap();
    // 21 modules and the quiet zone; what is declared is the PNG's size, what is drawn scales.
    assert!(svg.starts_with(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"116\" height=\"116\" viewBox=\"0 0 29 29\" \
         shape-rendering=\"crispEdges\"><rect width=\"29\" height=\"29\" fill=\"#fff\"/>\
         <path stroke=\"#000\" d=\"M4 4.5h7"
    ));
    assert!(svg.ends_with("\"/></svg>\n"));
    assert_eq!(svg.matches('<').count(), 4);
}

/// What a program answers to this on its standard input.
fn piped(program: &str, package: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): apt-get install {package}"));
    let mut stdin = child.stdin.take().unwrap();
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    assert!(answer.status.success(), "{program}: {}", answer.status);
    answer.stdout
}

fn scanned(png: &[u8]) -> String {
    let arguments = ["--quiet", "--nodbus", "--raw", "-Sdisable", "-Sqrcode.enable", "png:-"];
    let text = piped("zbarimg", "zbar-tools", &arguments, png);
    String::from_utf8(text).unwrap().trim_end_matches('\n').to_owned()
}

#[test]
fn a_scanner_reads_exactly_the_text() {
    for length in [200, 700, 1_500, 2_331, 2_953] {
        let text = jws(length);
        let png = draw(&text, Picture::Png).unwrap();
        assert_eq!(scanned(&png), text, "{length} bytes, PNG");
        let svg = draw(&text, Picture::Svg).unwrap();
        let drawn = piped("rsvg-convert", "librsvg2-bin", &["--format=png"], &svg);
        assert_eq!(scanned(&drawn), text, "{length} bytes, SVG");
    }
}
