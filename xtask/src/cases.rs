//! Checks that every numbered case of the specifications has a test.

use std::{collections::BTreeSet, ops::RangeInclusive};

/// A specification, and its cases that are postponed.
struct Specification {
    path: &'static str,
    later: &'static [(char, RangeInclusive<u16>)],
}

const SPECIFICATIONS: [Specification; 3] = [
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
    Specification { path: "docs/spec/hostile.md", later: &[] },
];

/// A letter and a number, such as S-014.
type Id = (char, u16);

/// The letter of hostile inputs. Most of them are rows of the tests' tables, and each is run once.
const HOSTILE: char = 'K';

/// The faults: cases without a test, tests of unknown cases, and hostile inputs with two tests.
pub(crate) fn faults<'a>(
    text: impl Fn(&str) -> &'a str,
    sources: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut tested = BTreeSet::new();
    let mut faults = Vec::new();
    for id in sources.flat_map(str::lines).flat_map(|line| tested_by(line).chain(rows(line))) {
        if !tested.insert(id) && id.0 == HOSTILE {
            faults.push(format!("two tests show {}", written(id)));
        }
    }
    let mut known = BTreeSet::new();
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
fn tested_by(line: &str) -> impl Iterator<Item = Id> {
    named(line).into_iter()
}

/// The hostile inputs that are rows of a test's table: `"K-017"`.
fn rows(line: &str) -> impl Iterator<Item = Id> {
    let ids = line.split('"').filter_map(|text| text.split_once('-'));
    ids.filter_map(|(letter, number)| id(letter, number)).filter(|(letter, _)| *letter == HOSTILE)
}

fn named(line: &str) -> Option<Id> {
    let name = line.split("fn ").nth(1)?;
    let mut parts = name.split('_');
    let (letter, number) = (parts.next()?, parts.next()?);
    // The name needs a statement after the number.
    parts.next()?;
    id(&letter.to_ascii_uppercase(), number)
}

fn id(letter: &str, number: &str) -> Option<Id> {
    let mut letters = letter.chars();
    let (Some(letter @ ('S' | 'X' | 'C' | HOSTILE)), None) = (letters.next(), letters.next())
    else {
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

    const INPUTS: &str = "| K-001 | an input |\n| K-002 | another |";

    fn text(path: &str) -> &'static str {
        match path {
            "docs/spec/stages.md" => SPECIFICATION,
            "docs/spec/channels.md" => ANOTHER,
            _ => INPUTS,
        }
    }

    /// The faults of the first specification; the others are fully tested.
    fn faults_of(sources: &[&str]) -> Vec<String> {
        let others = "fn c_001_a_thing_is() {\nws(\"K-001\", 1);\n\"K-002\",";
        faults(|path| text(path), sources.iter().copied().chain([others]))
    }

    /// The faults of the table of hostile inputs; the others are fully tested.
    fn faults_of_inputs(source: &str) -> Vec<String> {
        let others = "fn s_001_a() {}\nfn s_014_b() {}\nfn c_001_a_thing_is() {}";
        faults(|path| text(path), [others, source].into_iter())
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
    fn every_hostile_input_is_run_once() {
        let both = "fn k_001_an_input_is_refused() {\n    at(SMALL, \"K-002\", \"more\"),";
        assert!(faults_of_inputs(both).is_empty());
        let first = "(\"K-001\", 1)";
        assert_eq!(faults_of_inputs(first), ["docs/spec/hostile.md: no test shows K-002"]);
        let doubled = format!("{both}\n{first}");
        assert_eq!(faults_of_inputs(&doubled), ["two tests show K-001"]);
        let unknown = format!("{both}\n(\"K-003\", 1)");
        assert_eq!(faults_of_inputs(&unknown), ["a test shows K-003, which no specification has"]);
    }

    #[test]
    fn a_test_of_an_unknown_case_is_a_fault() {
        let sources = ["fn s_001_a() {}\nfn s_014_b() {}\nfn s_999_c() {}"];
        assert_eq!(faults_of(&sources), ["a test shows S-999, which no specification has"]);
    }
}
