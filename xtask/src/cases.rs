//! Checks that every numbered case of the specifications has a test.

use std::{collections::BTreeSet, ops::RangeInclusive};

/// A specification, and its cases that are postponed.
struct Specification {
    path: &'static str,
    later: &'static [(char, RangeInclusive<u16>)],
}

const SPECIFICATIONS: [Specification; 2] = [
    Specification {
        path: "docs/spec/stages.md",
        // The layer of processors, batchers and acknowledgements.
        later: &[('S', 184..=233), ('X', 35..=40)],
    },
    Specification {
        path: "docs/spec/channels.md",
        // Encrypted tokens are out of scope.
        later: &[('C', 200..=200)],
    },
];

/// A letter and a number, such as S-014.
type Id = (char, u16);

/// The faults: cases without a test, and tests of unknown cases.
pub(crate) fn faults<'a>(
    text: impl Fn(&str) -> &'a str,
    sources: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let tested: BTreeSet<Id> =
        sources.flat_map(|source| source.lines().filter_map(tested)).collect();
    let mut known = BTreeSet::new();
    let mut faults = Vec::new();
    for specification in &SPECIFICATIONS {
        let cases: BTreeSet<Id> = text(specification.path).lines().filter_map(case).collect();
        if cases.is_empty() {
            faults.push(format!("{}: has no cases", specification.path));
        }
        let is_later = |(letter, number): &Id| {
            let mut later = specification.later.iter();
            later.any(|(of, numbers)| of == letter && numbers.contains(number))
        };
        for id in cases.difference(&tested).filter(|id| !is_later(id)) {
            faults.push(format!("{}: no test shows {}", specification.path, written(*id)));
        }
        known.extend(cases);
    }
    let strays = tested.difference(&known);
    faults.extend(
        strays.map(|id| format!("a test shows {}, which no specification has", written(*id))),
    );
    faults
}

/// The case in a row of a table.
fn case(line: &str) -> Option<Id> {
    let cell = line.strip_prefix("| ")?.split(" |").next()?;
    let (letter, number) = cell.split_once('-')?;
    id(letter, number)
}

/// The case in the name of a function: `fn s_014_excess_is_reported`.
fn tested(line: &str) -> Option<Id> {
    let name = line.split("fn ").nth(1)?;
    let mut parts = name.split('_');
    let (letter, number) = (parts.next()?, parts.next()?);
    // The name needs a statement after the number.
    parts.next()?;
    id(&letter.to_ascii_uppercase(), number)
}

fn id(letter: &str, number: &str) -> Option<Id> {
    let mut letters = letter.chars();
    let (Some(letter @ ('S' | 'X' | 'C')), None) = (letters.next(), letters.next()) else {
        return None;
    };
    let is_number = number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| number.parse().ok()).flatten().map(|number| (letter, number))
}

fn written((letter, number): Id) -> String {
    format!("{letter}-{number:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIFICATION: &str = "\
| id | given |\n\
| S-001 | a thing |\n\
| S-014 | another |\n\
| S-184 | later |\n\
see S-002 in the text";

    const ANOTHER: &str = "| C-001 | a thing |\n| C-200 | later |";

    /// The faults of the first specification; the other one is fully tested.
    fn faults_of(sources: &[&str]) -> Vec<String> {
        let text = |path: &str| if path.contains("stages") { SPECIFICATION } else { ANOTHER };
        faults(text, sources.iter().copied().chain(["fn c_001_a_thing_is() {"]))
    }

    #[test]
    fn every_case_has_a_test() {
        let first = "async fn s_001_things_are_handled() {\n";
        let other = "    fn s_014_others_too(n: u32) {";
        assert!(faults_of(&[first, other]).is_empty());
        assert_eq!(faults_of(&[first]), ["docs/spec/stages.md: no test shows S-014"]);
        assert_eq!(faults_of(&[other, "fn s_001() {"]).len(), 1, "the name needs a statement");
    }

    #[test]
    fn a_test_of_an_unknown_case_is_a_fault() {
        let sources = ["fn s_001_a() {}\nfn s_014_b() {}\nfn s_999_c() {}"];
        assert_eq!(faults_of(&sources), ["a test shows S-999, which no specification has"]);
    }
}
