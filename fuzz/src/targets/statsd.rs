//! StatsD: every line that is sent is one of the recorded series, in a dialect's exact grammar, whatever the
//! names and the values are; and counters add up.

use std::{collections::BTreeMap, io, sync::Arc};

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use parking_lot::Mutex;
use pipeline_statsd::{
    Dialect, StatsdRecorder,
    cadence::MetricSink,
    fuzzing::{Flushes, without_thread},
};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[
    b"\n",
    b"|",
    b":1|c",
    b"|#k:v",
    b"@0.1",
    b";k=v",
    b",",
    b"requests",
    b"\xc3\xbc",
    b"..",
];

/// A sink that keeps the packets.
#[derive(Clone, Default)]
struct Packets(Arc<Mutex<Vec<String>>>);

impl MetricSink for Packets {
    fn emit(&self, text: &str) -> io::Result<usize> {
        self.0.lock().push(text.to_owned());
        Ok(text.len())
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let dialect = if input.flag() { Dialect::StatsD } else { Dialect::DogStatsD };
    let prefix = input.text(12);
    let tags: Vec<_> = (0..input.below(3)).map(|_| (input.text(8), input.text(8))).collect();
    let packet = input.flag().then(|| 1 + 2 * input.below(256));
    let per_event = input.below(4) == 0;
    let packets = Packets::default();
    let mut builder = StatsdRecorder::sink(packets.clone())
        .dialect(dialect)
        .prefix(&prefix)
        .own_counters(false)
        .packed_values(input.flag())
        .histogram_samples(1 + input.below(8))
        .sample_rate(input.choice(&[1.0, 0.5, 0.1, 1e-9]));
    if let Some(bytes) = packet {
        builder = builder.packet_bytes(bytes);
    }
    if per_event {
        builder = builder.per_event();
    }
    for (key, value) in &tags {
        builder = builder.tag(key, value);
    }
    let Ok((recorder, flushes)) = without_thread(builder) else {
        unreachable!("the options are valid")
    };
    let names = Names { dialect, prefix, tags };
    let run = Run { names, packets, recorder, flushes, packet, known: BTreeMap::new() };
    run.records(input);
}

struct Run {
    names: Names,
    packets: Packets,
    recorder: StatsdRecorder,
    flushes: Flushes,
    packet: Option<usize>,
    /// The sums of the counters of each series, by its sanitized name.
    known: BTreeMap<Series, u128>,
}

/// The name and the tags of a series.
type Series = (String, BTreeMap<String, String>);

impl Run {
    fn records(mut self, mut input: Input<'_>) {
        let metadata = Metadata::new("fuzz", Level::INFO, None);
        let (mut lines, mut oversized) = (0, 0);
        while !input.is_empty() {
            let what = input.below(8);
            let name = match input.below(4) {
                0 => input.text(20),
                1 => input.text(60).repeat(6),
                2 => "requests".to_owned(),
                _ => "é".repeat(input.below(256)),
            };
            let labels: Vec<(String, String)> =
                (0..input.below(3)).map(|_| (input.text(10), input.text(10))).collect();
            let series = self.names.series(&name, &labels);
            let sum = self.known.entry(series).or_default();
            let labels: Vec<Label> =
                labels.into_iter().map(|(key, value)| Label::new(key, value)).collect();
            let key = Key::from_parts(name.clone(), labels);
            match what {
                0..=2 => {
                    let value = input.odd_number() >> 8;
                    *sum += u128::from(value);
                    self.recorder.register_counter(&key, &metadata).increment(value);
                }
                3 => {
                    let gauge = self.recorder.register_gauge(&key, &metadata);
                    gauge.set(input.float());
                    if input.flag() {
                        gauge.increment(input.float());
                    }
                }
                4 => {
                    let unit = input.choice(&[Unit::Seconds, Unit::Nanoseconds, Unit::Count]);
                    self.recorder.describe_histogram(KeyName::from(name), Some(unit), "".into());
                }
                5 | 6 => {
                    let histogram = self.recorder.register_histogram(&key, &metadata);
                    for _ in 0..input.below(20) {
                        histogram.record(input.float());
                    }
                }
                _ => {
                    let report = self.flushes.flush();
                    (lines, oversized) = (lines + report.lines, oversized + report.lines_oversized);
                }
            }
        }
        let report = self.flushes.flush();
        (lines, oversized) = (lines + report.lines, oversized + report.lines_oversized);
        self.check(lines, oversized);
    }

    fn check(self, lines: u64, oversized: u64) {
        let packets = std::mem::take(&mut *self.packets.0.lock());
        let mut seen = 0;
        let mut sums: BTreeMap<Series, u128> = BTreeMap::new();
        for packet in &packets {
            let most = self.packet.unwrap_or(usize::MAX);
            assert!(packet.len() <= most, "{packet:?} is longer than {most} bytes");
            for line in packet.split('\n') {
                seen += 1;
                let Some(Line { series, kind, count }) = self.names.parse(line) else {
                    unreachable!("{line:?} is no line of {:?}", self.names.dialect)
                };
                assert!(self.known.contains_key(&series), "{line:?} is a series that is not known");
                if kind == "c" {
                    *sums.entry(series).or_default() += count;
                }
            }
        }
        assert_eq!(seen, lines, "the lines in the reports");
        for (series, sum) in &self.known {
            let sent = sums.get(series).copied().unwrap_or_default();
            assert!(sent <= *sum && (sent == *sum || oversized > 0), "{series:?}: {sent} of {sum}");
        }
    }
}

struct Names {
    dialect: Dialect,
    prefix: String,
    tags: Vec<(String, String)>,
}

struct Line {
    series: Series,
    kind: String,
    /// The value of a counter.
    count: u128,
}

impl Names {
    /// The name and the tags that a series is sent with.
    fn series(&self, name: &str, labels: &[(String, String)]) -> Series {
        let name = if name.is_empty() { "_".to_owned() } else { clean(&cut(name), "") };
        let prefix = self.prefix.trim_matches('.');
        let name = if prefix.is_empty() { name } else { format!("{}.{name}", clean(prefix, "")) };
        let (in_key, in_value) = match self.dialect {
            Dialect::DogStatsD => ("/", "/:"),
            _ => ("", ""),
        };
        let cleaned = |(key, value): (String, String)| {
            let is_empty = key.is_empty() || value.is_empty();
            (!is_empty).then(|| (clean(&key, in_key), clean(&value, in_value)))
        };
        let labels = labels.iter().map(|(key, value)| (cut(key), cut(value)));
        // Of labels whose keys are equal then, the one with the greatest value counts.
        let mut labels: Vec<_> = labels.filter_map(cleaned).collect();
        labels.sort_unstable();
        (name, self.tags.iter().cloned().filter_map(cleaned).chain(labels).collect())
    }

    /// A line by the grammar of the dialect.
    fn parse(&self, line: &str) -> Option<Line> {
        let is_dog = self.dialect == Dialect::DogStatsD;
        let (head, rest) = line.split_once(':')?;
        let mut fields = rest.split('|');
        let (values, kind) = (fields.next()?, fields.next()?);
        let (mut rate, mut tags) = (None, None);
        for field in fields {
            match field.as_bytes().first()? {
                b'@' if rate.is_none() && tags.is_none() => rate = Some(&field[1..]),
                b'#' if tags.is_none() && is_dog => tags = Some(&field[1..]),
                _ => return None,
            }
        }
        let kinds: &[&str] = if is_dog { &["c", "g", "ms", "h"] } else { &["c", "g", "ms"] };
        let is_sample = kind == "ms" || kind == "h";
        if !kinds.contains(&kind) || rate.is_some() && !is_sample {
            return None;
        }
        if let Some(rate) = rate {
            let rate: f64 = rate.strip_prefix("0.").map(|_| rate)?.parse().ok()?;
            (rate > 0.0 && rate < 1.0).then_some(())?;
        }
        let values: Vec<&str> = values.split(':').collect();
        let may_be_several = is_dog && is_sample;
        if values.is_empty() || values.len() > 1 && !may_be_several || !values.iter().all(is_number) {
            return None;
        }
        if !is_dog && kind != "g" && values[0].starts_with('-') {
            return None;
        }
        let count = if kind == "c" { values[0].parse().ok()? } else { 0 };
        let (name, tags) = match (is_dog, tags) {
            (true, None) => (head, BTreeMap::new()),
            (true, Some(tags)) => (head, pairs(tags.split(','), ':', "/", "/:")?),
            _ => match head.split_once(';') {
                None => (head, BTreeMap::new()),
                Some((name, tags)) => (name, pairs(tags.split(';'), '=', "", "")?),
            },
        };
        let is_name = !name.is_empty() && clean(name, "") == name;
        let series = (name.to_owned(), tags);
        is_name.then(|| Line { series, kind: kind.to_owned(), count })
    }
}

/// Tags, each of them once.
fn pairs<'a>(
    tags: impl Iterator<Item = &'a str>,
    equals: char,
    in_key: &str,
    in_value: &str,
) -> Option<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for tag in tags {
        let (key, value) = tag.split_once(equals)?;
        let is_clean = clean(key, in_key) == key && clean(value, in_value) == value;
        if key.is_empty() || value.is_empty() || !is_clean {
            return None;
        }
        pairs.insert(key.to_owned(), value.to_owned()).is_none().then_some(())?;
    }
    Some(pairs)
}

/// Digits, perhaps with a sign in front and a fraction behind, and nothing else.
fn is_number(text: &&str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    match unsigned.split_once('.') {
        None => digits(unsigned),
        Some((whole, fraction)) => digits(whole) && digits(fraction) && !fraction.ends_with('0'),
    }
}

/// The text with all characters replaced that do not stay as they are.
fn clean(text: &str, also: &str) -> String {
    text.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' | '.' => c,
            c if also.contains(c) => c,
            _ => '_',
        })
        .collect()
}

/// The text, cut to 200 bytes.
fn cut(text: &str) -> String {
    if text.len() <= 200 {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        if kept.len() + c.len_utf8() > 197 {
            break;
        }
        kept.push(c);
    }
    kept + "..."
}
