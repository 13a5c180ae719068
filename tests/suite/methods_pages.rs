//! `docs/methods/`: what the pages work out is what the terminal script computes, every value in them is a known one,
//! each flow has all steps of its description, and no link leads nowhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Deserializer, Value};

use crate::terminal_script::Terminal;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/methods");

/// The pages, each with the steps of the system that it carries out.
const PAGES: [(&str, &str, &[&str]); 5] = [
    (
        "challenge_response.md",
        include_str!("../../docs/methods/challenge_response.md"),
        &["S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11"],
    ),
    (
        "rolling_password.md",
        include_str!("../../docs/methods/rolling_password.md"),
        &["301", "101", "102", "103", "104", "105", "106", "201", "202", "203", "204", "205", "206"],
    ),
    (
        "presented_code.md",
        include_str!("../../docs/methods/presented_code.md"),
        &["S100", "S200", "1", "2", "3", "4"],
    ),
    (
        "device_signature.md",
        include_str!("../../docs/methods/device_signature.md"),
        &["101", "102", "103", "104", "105", "106", "107"],
    ),
    (
        "multi_terminal.md",
        include_str!("../../docs/methods/multi_terminal.md"),
        &["1", "2", "3", "4", "a", "b", "c", "d", "e"],
    ),
];

const CHOICE: &str = include_str!("../../docs/methods/README.md");

/// What stands in the page's blocks of code, with the language of each.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

/// The JSON objects of the blocks in which requests to the script stand, and its answers: `(request, answer)`.
fn worked(page: &str) -> Vec<(Value, Value)> {
    let mut pairs = Vec::new();
    for (_, block) in blocks(page).into_iter().filter(|(language, _)| *language == "json") {
        let values: Vec<Value> =
            Deserializer::from_str(block).into_iter().collect::<Result<_, _>>().expect("JSON in a page");
        assert_eq!(values.len() % 2, 0, "a request without its answer: {block}");
        pairs.extend(values.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())));
    }
    pairs
}

/// Codes, keys, digests, ids, signed bytes: six decimal or twelve hexadecimal digits, or what is long and has digits.
fn values(text: &str) -> impl Iterator<Item = &str> {
    let all = |word: &str, of: fn(&u8) -> bool| word.bytes().all(|byte| of(&byte));
    text.split(|character: char| !character.is_ascii_alphanumeric() && !"_-".contains(character)).filter(
        move |word| {
            let digits = word.bytes().any(|byte| byte.is_ascii_digit());
            word.len() >= 6 && all(word, u8::is_ascii_digit)
                || word.len() >= 12 && all(word, u8::is_ascii_hexdigit)
                || word.len() >= 20 && digits
        },
    )
}

/// All words of all texts and numbers in it.
fn collect(value: &Value, known: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, known)),
        Value::Object(members) => members.values().for_each(|member| collect(member, known)),
        Value::String(text) => known.extend(values(text).map(str::to_owned)),
        other => known.extend(values(&other.to_string()).map(str::to_owned)),
    }
}

fn vectors() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            collect(&serde_json::from_slice(&fs::read(path).unwrap()).unwrap(), &mut known);
        }
    }
    known
}

#[test]
fn the_script_answers_what_the_pages_say() {
    let mut terminal = Terminal::start();
    for (name, page, _) in PAGES {
        let pairs = worked(page);
        assert!(!pairs.is_empty(), "{name} works nothing out");
        for (request, answer) in pairs {
            let said = terminal.ask_line(request.to_string().as_bytes());
            assert_eq!(said, answer, "{name}: {request}");
        }
    }
}

/// A key, a digest or a code that nothing else knows is a slip of the pen.
#[test]
fn every_value_is_a_known_one() {
    let (known, mut terminal, mut seen) = (vectors(), Terminal::start(), 0);
    for (name, page, _) in PAGES.into_iter().chain([("README.md", CHOICE, [].as_slice())]) {
        let mut known = known.clone();
        for (request, _) in worked(page) {
            collect(&terminal.ask_line(request.to_string().as_bytes()), &mut known);
        }
        let inline = page.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
        for text in blocks(page).into_iter().map(|(_, block)| block).chain(inline) {
            for value in values(text) {
                assert!(known.contains(value), "{name}: nothing else has {value}");
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "{seen} values");
}

/// What separates one derivation from another is spelled as the script has it.
#[test]
fn every_context_is_the_scripts() {
    let script = include_str!("../../examples/terminal/derivations.py");
    for (name, page, _) in PAGES {
        let formulas = blocks(page).into_iter().filter(|(language, _)| language.is_empty());
        let quoted = formulas.flat_map(|(_, formula)| formula.split('"').skip(1).step_by(2));
        for context in quoted {
            assert!(script.contains(&format!("\"{context}\"")), "{name}: {context}");
        }
    }
}

#[test]
fn each_flow_has_all_steps() {
    for (name, page, steps) in PAGES {
        let flows: String = blocks(page)
            .into_iter()
            .filter(|(language, flow)| *language == "mermaid" && flow.starts_with("sequenceDiagram\n"))
            .map(|(_, flow)| flow)
            .collect();
        for step in steps {
            assert!(flows.contains(&format!("({step})")), "{name} has no step {step}");
        }
        assert!(CHOICE.contains(&format!("[`{}`]({name})", name.trim_end_matches(".md"))), "{name}");
        for heading in [
            "The flow",
            "The bytes",
            "What it stops",
            "What it cannot stop",
            "Limits",
            "What the backend has to do",
            "When to choose it",
        ] {
            assert!(page.contains(&format!("\n## {heading}\n")), "{name} does not say: {heading}");
        }
    }
    assert_eq!(fs::read_dir(FOLDER).unwrap().count(), PAGES.len() + 1, "a page that nobody checks");
}

/// As a heading is named in a link: lower case, hyphens for spaces, and no punctuation.
fn anchor(heading: &str) -> String {
    let kept = |character: &char| character.is_alphanumeric() || " -_".contains(*character);
    heading.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn no_link_leads_nowhere() {
    for (name, page, _) in PAGES.into_iter().chain([("README.md", CHOICE, [].as_slice())]) {
        let links: Vec<_> = page.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0).collect();
        assert!(!links.is_empty(), "{name}");
        for link in links {
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let text = fs::read_to_string(Path::new(FOLDER).join(file))
                .unwrap_or_else(|error| panic!("{name}: {link}: {error}"));
            let mut headings = text
                .lines()
                .filter(|line| line.starts_with('#'))
                .map(|line| line.trim_start_matches('#').trim());
            assert!(part.is_empty() || headings.any(|heading| anchor(heading) == part), "{name}: {link}");
        }
    }
}
