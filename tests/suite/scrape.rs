//! What `/metrics` says, read strictly: whatever OpenMetrics 1.0 does not have fails the test.

use std::collections::BTreeMap;

use crate::daemon::Daemon;
use crate::served::ops_get;

/// A series' labels.
pub type Labels = BTreeMap<String, String>;

/// A metric with its samples, by the sample's name and labels. Those of one value each bear the sample's name,
/// as who asks for them writes it.
#[derive(Debug)]
pub struct Family {
    pub kind: String,
    pub samples: BTreeMap<(String, Labels), f64>,
}

/// One look at a daemon's metrics.
#[derive(Debug)]
pub struct Scrape {
    pub families: BTreeMap<String, Family>,
    pub text: String,
}

impl Scrape {
    /// Of a daemon.
    pub fn of(daemon: &Daemon) -> Self {
        Self::at(daemon.info["ops_url"].as_str().unwrap())
    }

    /// Of an operator's listener.
    pub fn at(ops_url: &str) -> Self {
        let (status, text) = ops_get(ops_url, "/metrics");
        assert_eq!(status, 200, "{text}");
        Self::parse(text)
    }

    pub fn parse(text: String) -> Self {
        assert!(!text.contains('\r'));
        let metrics = text.strip_suffix("# EOF\n").expect("it was cut off");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut lines = metrics.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) =
                line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(line);
            assert!(is_name(name) && !help.trim().is_empty(), "{line}");
            let of_type = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect(line);
            let (typed, kind) = of_type.split_once(' ').expect(of_type);
            assert_eq!(typed, name);
            let suffixes: &[&str] = match kind {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => panic!("{of_type}"),
            };
            let mut family = Family { kind: kind.to_owned(), samples: BTreeMap::new() };
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let (sample, labels, value) = sample(line);
                let suffix = sample.strip_prefix(name);
                assert!(suffix.is_some_and(|suffix| suffixes.contains(&suffix)), "{line} under {name}");
                let double = family.samples.insert((sample, labels), value);
                assert!(double.is_none(), "twice: {line}");
            }
            match kind {
                "counter" => assert!(family.samples.values().all(|value| *value >= 0.0), "{name}"),
                "info" => assert!(family.samples.values().all(|value| *value == 1.0), "{name}"),
                "histogram" => family.check_histogram(name),
                _ => {}
            }
            assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}");
            let name = if let [suffix] = suffixes { name.to_owned() + suffix } else { name.to_owned() };
            assert!(!families.contains_key(&name), "{name} is there twice");
            families.insert(name, family);
        }
        Self { families, text }
    }

    /// A sample's value; 0 where there is none.
    pub fn value(&self, sample: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let key = (sample.to_owned(), labels);
        self.families.values().find_map(|family| family.samples.get(&key)).copied().unwrap_or(0.0)
    }

    /// The sum over all samples of this name.
    pub fn sum(&self, sample: &str) -> f64 {
        let all = self.families.values().flat_map(|family| &family.samples);
        all.filter(|((name, _), _)| name == sample).map(|(_, value)| value).sum()
    }

    /// The samples of this name that are not 0, by the value of their one label.
    pub fn counted(&self, sample: &str) -> BTreeMap<&str, f64> {
        let all = self.families.values().flat_map(|family| &family.samples);
        let counted = all.filter(|((name, _), value)| name == sample && **value != 0.0);
        counted.map(|((_, labels), value)| (labels.values().next().map_or("", |v| v), *value)).collect()
    }
}

impl Family {
    /// For each set of labels: buckets in growing order, cumulative, the last one `+Inf` and equal to the count.
    fn check_histogram(&self, name: &str) {
        let mut by_labels: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for ((sample, labels), value) in &self.samples {
            let mut labels = labels.clone();
            if sample.ends_with("_bucket") {
                let bound = labels.remove("le").expect("a bucket without its bound");
                by_labels.entry(labels).or_default().push((number(&bound), *value));
            } else {
                assert!(!labels.contains_key("le"), "{name}");
            }
        }
        assert!(!by_labels.is_empty(), "{name} has no series");
        assert_eq!(self.samples.len(), by_labels.values().map(|buckets| buckets.len() + 2).sum::<usize>());
        for (labels, mut buckets) in by_labels {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?}: {buckets:?}");
            let (bound, all) = *buckets.last().unwrap();
            assert_eq!(bound, f64::INFINITY, "{name} {labels:?}");
            assert_eq!(self.samples[&(format!("{name}_count"), labels.clone())], all, "{name} {labels:?}");
            assert!(self.samples[&(format!("{name}_sum"), labels)] >= 0.0, "{name}");
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_lowercase() || c == '_';
    name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        "NaN" => f64::NAN,
        _ => {
            assert!(text.starts_with(|c: char| c.is_ascii_digit() || c == '-'), "{text}");
            text.parse().expect(text)
        }
    }
}

/// `name{label="value",…} number`
fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, rest)) => (name, rest.strip_suffix('}').filter(|rest| !rest.is_empty()).expect(line)),
    };
    assert!(is_name(name), "{line}");
    let mut found = Labels::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (key, behind) = rest.split_once("=\"").expect(line);
        let (value, behind) = behind.split_once('"').expect(line);
        assert!(is_name(key) && !value.contains('\\'), "{line}");
        assert!(found.insert(key.to_owned(), value.to_owned()).is_none(), "{line}");
        rest = match behind.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            _ => {
                assert!(behind.is_empty(), "{line}");
                ""
            }
        };
    }
    (name.to_owned(), found, number(value))
}

const SOUND: &str = "# HELP a_seconds A.\n# TYPE a_seconds histogram\na_seconds_sum 1.5\na_seconds_count 2\n\
                     a_seconds_bucket{le=\"1.0\"} 1\na_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";

#[test]
fn what_is_sound_is_read() {
    let scrape = Scrape::parse("# HELP b B.\n# TYPE b counter\nb_total{x=\"y\"} 3\n".to_owned() + SOUND);
    assert_eq!(scrape.value("b_total", &[("x", "y")]), 3.0);
    assert_eq!(scrape.counted("b_total"), BTreeMap::from([("y", 3.0)]));
}

#[test]
fn what_is_not_sound_is_not_read() {
    for (from, to) in [
        ("count 2", "count 3"),
        ("+Inf", "2.0"),
        ("le=\"1.0\"} 1", "le=\"1.0\"} 3"),
        ("# HELP a_seconds A.\n", ""),
        ("TYPE a_seconds", "TYPE b_seconds"),
        ("a_seconds_sum 1.5\n", "a_seconds_sum 1.5\na_seconds_sum 1.5\n"),
        ("a_seconds_sum 1.5\n", ""),
        ("histogram", "counter"),
        ("a_seconds_sum", "c_seconds_sum"),
        ("# EOF\n", ""),
    ] {
        assert!(SOUND.contains(from));
        let text = SOUND.replacen(from, to, 1);
        assert!(std::panic::catch_unwind(|| Scrape::parse(text)).is_err(), "{from} -> {to}");
    }
}
