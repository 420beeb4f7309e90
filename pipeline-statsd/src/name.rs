//! Names of series: prefix, name and tags, sanitized once per series.
//!
//! Pure. [`Dialect`] documents the rules.

use std::{borrow::Cow, collections::BTreeMap};

use metrics::{Key, Label};

use crate::line::Dialect;

/// An encoded name in two parts, with the value between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeriesName {
    head: Box<str>,
    tail: Box<str>,
}

impl SeriesName {
    /// The part before the `:` of the value.
    pub(crate) fn head(&self) -> &str {
        &self.head
    }

    /// The end of the line: empty, or `|#` and the tags.
    pub(crate) fn tail(&self) -> &str {
        &self.tail
    }
}

/// Maximum size of a name, a label's key or a label's value, in bytes.
pub(crate) const MAX_TEXT: usize = 200;

/// The suffix of a truncated text.
const CUT: &str = "...";

/// The key with all texts truncated to [`MAX_TEXT`]. Keys that become equal are one series.
pub(crate) fn within_bounds(key: &Key) -> Cow<'_, Key> {
    let is_long = |text: &str| text.len() > MAX_TEXT;
    let has_long = |label: &Label| is_long(label.key()) || is_long(label.value());
    if !is_long(key.name()) && !key.labels().any(has_long) {
        return Cow::Borrowed(key);
    }
    let cut_label = |label: &Label| Label::new(cut(label.key()), cut(label.value()));
    let labels: Vec<_> = key.labels().map(cut_label).collect();
    Cow::Owned(Key::from_parts(cut(key.name()), labels))
}

/// The text, truncated to at most [`MAX_TEXT`] bytes and marked as truncated.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    let mut end = MAX_TEXT - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &text[..end])
}

/// The dialect, prefix and tags that all series of a recorder share.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    dialect: Dialect,
    /// Empty, or sanitized and with a trailing dot.
    prefix: String,
    /// Sanitized and non-empty, by key.
    tags: BTreeMap<String, String>,
}

impl Naming {
    pub(crate) fn new(dialect: Dialect, prefix: &str, tags: &[(String, String)]) -> Self {
        let mut clean_prefix = String::new();
        let prefix = prefix.trim_matches('.');
        if !prefix.is_empty() {
            push_clean(&mut clean_prefix, prefix, |_| false);
            clean_prefix.push('.');
        }
        let tags = tags.iter().filter_map(|(key, value)| clean_tag(dialect, key, value)).collect();
        Self { dialect, prefix: clean_prefix, tags }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The encoded name of a key's series.
    pub(crate) fn of(&self, key: &Key) -> SeriesName {
        self.series(key.name(), key.labels().map(|label| (label.key(), label.value())))
    }

    pub(crate) fn series<'a>(
        &self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> SeriesName {
        let mut tags = self.tags.clone();
        // Keys whose labels are in another order are equal and share a series. Which of two labels of one
        // key is sent must not depend on the order that was registered first.
        let labels = labels.into_iter();
        let mut labels: Vec<_> =
            labels.filter_map(|(key, value)| clean_tag(self.dialect, key, value)).collect();
        labels.sort_unstable();
        tags.extend(labels);

        let mut head = self.prefix.clone();
        if name.is_empty() {
            head.push('_');
        } else {
            push_clean(&mut head, name, |_| false);
        }

        let mut tail = String::new();
        match self.dialect {
            Dialect::StatsD => push_tags(&mut head, &tags, ";", ";", '='),
            Dialect::DogStatsD => push_tags(&mut tail, &tags, "|#", ",", ':'),
        }
        SeriesName { head: head.into(), tail: tail.into() }
    }
}

/// None if the key or the value is empty: receivers treat such tags differently.
fn clean_tag(dialect: Dialect, key: &str, value: &str) -> Option<(String, String)> {
    if key.is_empty() || value.is_empty() {
        return None;
    }
    let dog = dialect == Dialect::DogStatsD;
    let (mut clean_key, mut clean_value) = (String::new(), String::new());
    push_clean(&mut clean_key, key, |c| dog && c == '/');
    push_clean(&mut clean_value, value, |c| dog && (c == '/' || c == ':'));
    Some((clean_key, clean_value))
}

/// Appends `text` with each character that is not allowed replaced by one `_`.
fn push_clean(out: &mut String, text: &str, also: impl Fn(char) -> bool) {
    let keeps = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || also(c);
    out.extend(text.chars().map(|c| if keeps(c) { c } else { '_' }));
}

fn push_tags(
    out: &mut String,
    tags: &BTreeMap<String, String>,
    before: &str,
    between: &str,
    equals: char,
) {
    for (n, (key, value)) in tags.iter().enumerate() {
        out.push_str(if n == 0 { before } else { between });
        out.push_str(key);
        out.push(equals);
        out.push_str(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::SampleKind;
    use proptest::prelude::*;

    fn text(naming: &Naming, name: &str, labels: &[(&str, &str)]) -> String {
        let series = naming.series(name, labels.iter().copied());
        format!("{}:{}", series.head(), series.tail())
    }

    fn naming(dialect: Dialect) -> Naming {
        Naming::new(dialect, "", &[])
    }

    #[test]
    fn forbidden_characters_become_one_underscore_each() {
        let hostile = "a b:c|d@e#f,g;h=i\nj\r\tk\0l/m\u{e9}n\u{1f980}o-p_q.r";
        let clean = "a_b_c_d_e_f_g_h_i_j__k_l_m_n_o-p_q.r";
        let (etsy, dog) = (naming(Dialect::StatsD), naming(Dialect::DogStatsD));
        assert_eq!(text(&etsy, hostile, &[]), format!("{clean}:"));
        assert_eq!(text(&dog, hostile, &[]), format!("{clean}:"));
        assert_eq!(text(&etsy, "n", &[(hostile, hostile)]), format!("n;{clean}={clean}:"));
        assert_eq!(
            text(&dog, "n", &[(hostile, hostile)]),
            "n:|#a_b_c_d_e_f_g_h_i_j__k_l/m_n_o-p_q.r:a_b:c_d_e_f_g_h_i_j__k_l/m_n_o-p_q.r"
        );
    }

    #[test]
    fn a_prefix_is_joined_by_one_dot() {
        for prefix in ["push", "push.", ".push.", "push.."] {
            let naming = Naming::new(Dialect::DogStatsD, prefix, &[]);
            assert_eq!(text(&naming, "joins", &[]), "push.joins:");
        }
        assert_eq!(text(&Naming::new(Dialect::DogStatsD, ".", &[]), "joins", &[]), "joins:");
    }

    #[test]
    fn an_empty_name_is_an_underscore() {
        assert_eq!(text(&naming(Dialect::DogStatsD), "", &[]), "_:");
        assert_eq!(text(&Naming::new(Dialect::StatsD, "push", &[]), "", &[]), "push._:");
    }

    #[test]
    fn half_a_tag_is_left_out() {
        let labels = [("", "v"), ("k", ""), ("", ""), ("a", "b")];
        assert_eq!(text(&naming(Dialect::DogStatsD), "n", &labels), "n:|#a:b");
        assert_eq!(text(&naming(Dialect::StatsD), "n", &labels), "n;a=b:");
        assert_eq!(text(&naming(Dialect::DogStatsD), "n", &[("k", "")]), "n:");
    }

    #[test]
    fn tags_are_sorted_and_a_label_wins_over_a_global_tag() {
        let global = [("region".into(), "eu".into()), ("env".into(), "dev".into())];
        let naming = Naming::new(Dialect::DogStatsD, "", &global);
        let labels = [("stage", "push"), ("env", "test")];
        assert_eq!(text(&naming, "n", &labels), "n:|#env:test,region:eu,stage:push");
    }

    #[test]
    fn of_labels_with_one_key_the_greatest_value_is_sent_whatever_their_order() {
        let naming = naming(Dialect::DogStatsD);
        for labels in [[("k", "a"), ("k", "b")], [("k", "b"), ("k", "a")]] {
            assert_eq!(text(&naming, "n", &labels), "n:|#k:b");
        }
        for [one, other] in [["k|", "k#"], ["k#", "k|"]] {
            for labels in [[(one, "a"), (other, "b")], [(one, "b"), (other, "a")]] {
                assert_eq!(text(&naming, "n", &labels), "n:|#k_:b", "keys that become equal");
            }
        }
    }

    #[test]
    fn long_texts_are_truncated_and_end_in_dots() {
        let long = "é".repeat(50_000);
        let key = Key::from_parts(long.clone(), vec![Label::new(long.clone(), long)]);
        let key = within_bounds(&key).into_owned();
        let text = format!("{}...", "é".repeat(98));
        assert_eq!(key.name(), text);
        assert!(key.labels().all(|label| label.key() == text && label.value() == text));
        let short = Key::from_parts("n".repeat(MAX_TEXT), vec![Label::new("k", "v")]);
        assert!(matches!(within_bounds(&short), Cow::Borrowed(_)));
    }

    struct Line {
        name: String,
        tags: Vec<(String, String)>,
        value: f64,
        kind: String,
    }

    /// Parses one line by the rules of the format alone.
    fn parse(dialect: Dialect, line: &str) -> Option<Line> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let word = |text: &str, also: &str| {
            let ok = !text.is_empty() && text.chars().all(|c| plain(c) || also.contains(c));
            ok.then(|| text.to_owned())
        };
        let (head, rest) = line.split_once(':')?;
        let mut fields = rest.split('|');
        let value: f64 = fields.next()?.parse().ok()?;
        let kind = fields.next()?.to_owned();
        let mut tags = Vec::new();
        let mut name = head;
        if dialect == Dialect::StatsD {
            let mut parts = head.split(';');
            name = parts.next()?;
            for tag in parts {
                let (key, value) = tag.split_once('=')?;
                tags.push((word(key, "")?, word(value, "")?));
            }
        }
        for field in fields {
            if let Some(rate) = field.strip_prefix('@') {
                let rate: f64 = rate.parse().ok()?;
                (0.0 < rate && rate < 1.0).then_some(())?;
            } else {
                (dialect == Dialect::DogStatsD && tags.is_empty()).then_some(())?;
                for tag in field.strip_prefix('#')?.split(',') {
                    let (key, value) = tag.split_once(':')?;
                    tags.push((word(key, "/")?, word(value, "/:")?));
                }
            }
        }
        Some(Line { name: word(name, "")?, tags, value, kind })
    }

    /// Any text, and often text made of the format's own characters.
    fn hostile() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "[a-c.:|@#,;=\n\r\t /_-]{0,8}"]
    }

    fn dialects() -> impl Strategy<Value = Dialect> {
        prop_oneof![Just(Dialect::StatsD), Just(Dialect::DogStatsD)]
    }

    proptest! {
        #[test]
        fn any_input_makes_one_line_that_parses(
            dialect in dialects(),
            prefix in hostile(),
            name in hostile(),
            global in prop::collection::vec((hostile(), hostile()), 0..3),
            labels in prop::collection::vec((hostile(), hostile()), 0..4),
            counted: u64,
            value in 0.0..1e9_f64,
            weight in 1..10_000_u64,
        ) {
            let naming = Naming::new(dialect, &prefix, &global);
            let pairs = labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            let series = naming.series(&name, pairs);

            let (mut counter, mut gauge, mut sample) = Default::default();
            dialect.write_counter(&mut counter, &series, counted);
            prop_assert!(dialect.write_gauge(&mut gauge, &series, value));
            let kind = SampleKind::Timing;
            prop_assert!(dialect.write_sample(&mut sample, &series, kind, value, weight));

            let length = name.chars().count().max(1);
            for (line, kind, value) in
                [(&counter, "c", counted as f64), (&gauge, "g", value), (&sample, "ms", value)]
            {
                let read = parse(dialect, line);
                prop_assert!(read.is_some(), "{line:?}");
                let read = read.unwrap();
                prop_assert!(read.name.len() >= length, "{line:?}");
                prop_assert_eq!(read.kind, kind);
                prop_assert!((read.value - value).abs() <= 1e-9 + value * f64::EPSILON);
                // Exactly the tags with a key and a value are present.
                let mut keys: Vec<_> = global.iter().chain(&labels)
                    .filter_map(|(key, value)| clean_tag(dialect, key, value))
                    .map(|(key, _)| key)
                    .collect();
                keys.sort();
                keys.dedup();
                let read: Vec<_> = read.tags.into_iter().map(|(key, _)| key).collect();
                prop_assert_eq!(read, keys);
            }
        }

        #[test]
        fn allowed_text_is_unchanged(
            name in "[a-zA-Z0-9_.-]{1,12}",
            key in "[a-zA-Z0-9_.-]{1,12}",
            value in "[a-zA-Z0-9_.-]{1,12}",
        ) {
            let labels = [(key.as_str(), value.as_str())];
            prop_assert_eq!(
                text(&naming(Dialect::StatsD), &name, &labels),
                format!("{name};{key}={value}:")
            );
            prop_assert_eq!(
                text(&naming(Dialect::DogStatsD), &name, &labels),
                format!("{name}:|#{key}:{value}")
            );
        }
    }
}
