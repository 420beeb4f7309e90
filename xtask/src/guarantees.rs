//! Checks that every promise of the guarantees has an id of its own and tests that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The document with the promises.
pub(crate) const PATH: &str = "docs/guarantees.md";

/// The start of a promise, before its id.
const PROMISE: &str = "- **";

/// A promise: a list item with an id, and its tests in the items below it.
#[derive(Debug, PartialEq, Eq)]
struct Promise<'a> {
    id: &'a str,
    line: usize,
    /// The tests by file and function.
    tests: Vec<(&'a str, &'a str)>,
}

/// The faults: promises with the same id or without a test, tests that do not exist, and ids in other texts
/// that no promise has.
pub(crate) fn faults<'a>(
    source: impl Fn(&str) -> &'a str,
    texts: impl Iterator<Item = (&'a Path, &'a str)>,
) -> Vec<String> {
    let document = source(PATH);
    let promises = promises(document);
    let mut faults = Vec::new();
    if promises.is_empty() {
        faults.push(format!("{PATH}: has no promises"));
    }
    let mut lines = BTreeMap::new();
    for Promise { id, line, tests } in &promises {
        if let Some(before) = lines.insert(*id, *line) {
            faults.push(format!("{PATH}:{line}: {id} is also the promise in line {before}"));
        }
        if tests.is_empty() {
            faults.push(format!("{PATH}:{line}: {id} names no test"));
        }
    }
    let named: BTreeSet<_> = document.lines().flat_map(tests).collect();
    let missing = named.into_iter().filter(|(file, test)| !is_test(source(file), test));
    faults.extend(missing.map(|(file, test)| format!("{PATH}: there is no test {file}::{test}")));
    for (path, text) in texts {
        let unknown = mentions(text).filter(|id| !lines.contains_key(id));
        faults.extend(unknown.map(|id| format!("{}: there is no promise {id}", path.display())));
    }
    faults
}

fn promises(document: &str) -> Vec<Promise<'_>> {
    let mut promises: Vec<Promise<'_>> = Vec::new();
    for (line, text) in (1..).zip(document.lines()) {
        let id = text.strip_prefix(PROMISE).and_then(|rest| rest.split("**").next());
        if let Some(id) = id.filter(|id| is_id(id)) {
            promises.push(Promise { id, line, tests: Vec::new() });
        } else if text.starts_with("  - ")
            && let Some(promise) = promises.last_mut()
        {
            promise.tests.extend(tests(text));
        }
    }
    promises
}

/// The tests that a line names in backticks: `folder/file.rs::function`.
fn tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = line.split('`').skip(1).step_by(2);
    quoted.filter_map(|name| name.split_once("::")).filter(|(file, _)| file.ends_with(".rs"))
}

/// Whether a source has this test: a function below a test attribute, or a name in the list of a macro
/// that makes a test of each.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let is_named = |line: &str| {
        let function = line.trim_start_matches("pub ").trim_start_matches("async ");
        let rest = function.strip_prefix("fn ").and_then(|rest| rest.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with(['(', '<']))
    };
    let is_below_attribute = |at: usize| {
        let mut above =
            lines[..at].iter().rev().take_while(|line| !line.is_empty() && *line != &"}");
        above.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    };
    let mut functions = (0..lines.len()).filter(|at| is_named(lines[*at]));
    functions.any(is_below_attribute)
        || source.contains("macro_rules! tests") && lines.contains(&name)
}

/// The ids of promises that a text mentions.
fn mentions(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("G-").filter_map(|(at, _)| {
        let rest = &text[at..];
        let length =
            rest[2..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| end + 2);
        let is_whole = !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
        Some(&rest[..length]).filter(|id| is_whole && is_id(id))
    })
}

/// Whether a text is an id, such as `G-07`.
fn is_id(text: &str) -> bool {
    let number = text.strip_prefix("G-").unwrap_or_default();
    number.len() >= 2 && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
#[test]
fn a_test() {}

proptest! {
    #[test]
    fn a_property(n in 0..9) {
    }
}

/// A helper.
fn a_helper() {}

#[tokio::test(start_paused = true)]
#[should_panic]
async fn an_async_test() {
}
fn another_helper() {}";

    const GENERATED: &str = "\
macro_rules! tests { ($($name:ident)*) => {} }

fn a_case() {}

tests! {
    a_case
}";

    fn faults_of(document: &str, other: &str) -> Vec<String> {
        let source = |path: &str| match path {
            PATH => document.to_owned().leak(),
            "a/b.rs" => SOURCE,
            "a/c.rs" => GENERATED,
            _ => "",
        };
        faults(source, [(Path::new("other.md"), &*other.to_owned().leak())].into_iter())
    }

    #[test]
    fn promises_with_tests_have_no_faults() {
        let document = "- **G-01** A thing\n  holds.\n  - `a/b.rs::a_test`, `a/b.rs::a_property`\n\n\
                        - **G-02** Another.\n  - `a/b.rs::an_async_test`\n  - `a/c.rs::a_case`\n- No promise.";
        assert_eq!(faults_of(document, "see G-02, G-1 and BIG-99"), Vec::<String>::new());
    }

    #[test]
    fn a_missing_test_is_a_fault() {
        for name in [
            "a/b.rs::a_tes",
            "a/b.rs::a_helper",
            "a/b.rs::another_helper",
            "a/c.rs::case",
            "d.rs::a_test",
        ] {
            let document = format!("- **G-01** A thing.\n  - `{name}`");
            assert_eq!(faults_of(&document, ""), [format!("{PATH}: there is no test {name}")]);
        }
    }

    #[test]
    fn a_repeated_id_and_a_promise_without_a_test_are_faults() {
        let document = "- **G-01** A thing.\n  - `a/b.rs::a_test`\n- **G-01** Another.";
        let expected = ["3: G-01 is also the promise in line 1", "3: G-01 names no test"];
        assert_eq!(faults_of(document, ""), expected.map(|fault| format!("{PATH}:{fault}")));
        assert_eq!(faults_of("", ""), [format!("{PATH}: has no promises")]);
    }

    #[test]
    fn an_unknown_id_in_another_text_is_a_fault() {
        let document = "- **G-01** A thing.\n  - `a/b.rs::a_test`";
        assert_eq!(faults_of(document, "(G-12)"), ["other.md: there is no promise G-12"]);
    }
}
