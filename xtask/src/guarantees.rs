//! Checks that every promise of the guarantees has an id of its own and tests that exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The document with the promises.
pub(crate) const PATH: &str = "docs/guarantees.md";

/// The start of a promise, before its id.
const PROMISE: &str = "- **";

/// The line above a section's promises; another line that ends with a colon, or a heading, ends them.
const PROMISED: &str = "Promised:";

/// A promise: a list item with an id, and its tests in the items below it.
#[derive(Debug, PartialEq, Eq)]
struct Promise<'a> {
    id: &'a str,
    line: usize,
    /// The tests by file and function.
    tests: Vec<(&'a str, &'a str)>,
}

/// The faults: items that are no promise or no test, promises with the same id or without a test, tests that do
/// not exist or are not run, and ids in other texts that no promise has.
pub(crate) fn faults<'a>(
    source: impl Fn(&str) -> &'a str,
    texts: impl Iterator<Item = (&'a Path, &'a str)>,
) -> Vec<String> {
    let document = source(PATH);
    let promises = promises(document);
    let mut faults = unread(document);
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
        if let Some(id) = promised(text) {
            promises.push(Promise { id, line, tests: Vec::new() });
        } else if text.starts_with("  - ")
            && let Some(promise) = promises.last_mut()
        {
            promise.tests.extend(tests(text));
        }
    }
    promises
}

/// The id of the promise that begins in a line: `- **G-07** A thing holds.`
fn promised(line: &str) -> Option<&str> {
    let (id, _) = line.strip_prefix(PROMISE)?.split_once("** ")?;
    Some(id).filter(|id| is_id(id))
}

/// The items that look like a promise or a test, and are none. They would be missed otherwise.
fn unread(document: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut is_promised = false;
    for (line, text) in (1..).zip(document.lines()) {
        if text.starts_with('#') || !text.starts_with(' ') && text.ends_with(':') {
            is_promised = text == PROMISED;
        }
        let is_item = text.starts_with("- ") && is_promised || text.starts_with(PROMISE);
        if is_item && promised(text).is_none() {
            faults.push(format!("{PATH}:{line}: this item has no id, such as G-07"));
        }
        if text.starts_with("  - ") {
            let unknown = quoted(text).filter(|name| test(name).is_none());
            faults
                .extend(unknown.map(|name| format!("{PATH}:{line}: {name} is not a test's name")));
        }
    }
    faults
}

/// The tests that a line names in backticks.
fn tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    quoted(line).filter_map(test)
}

fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The file and the function of a test's name: `folder/file.rs::function`.
fn test(name: &str) -> Option<(&str, &str)> {
    let (file, function) = name.split_once("::")?;
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
    (file.ends_with(".rs") && function.chars().all(is_name)).then_some((file, function))
}

/// Whether a source has this test: a function below a test attribute that is not ignored, or a name in the
/// list of a macro that makes a test of each.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let is_named = |line: &str| {
        let function = line.trim_start_matches("pub ").trim_start_matches("async ");
        let rest = function.strip_prefix("fn ").and_then(|rest| rest.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with(['(', '<']))
    };
    let is_below_attribute = |at: usize| {
        let above = || lines[..at].iter().rev().take_while(|line| !["", "}"].contains(*line));
        let is_attribute =
            |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        above().any(is_attribute) && !above().any(|line| line.starts_with("#[ignore"))
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
fn another_helper() {}

#[test]
#[ignore]
fn an_ignored_test() {}";

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
            "a/b.rs::an_ignored_test",
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
    fn an_item_that_is_no_promise_or_no_test_is_a_fault() {
        let test = "  - `a/b.rs::a_test`";
        for item in
            ["- **G-1** A thing.", "- **G-01 ** A thing.", "- **G-01**, a thing.", "- **A thing**"]
        {
            let document = format!("{item}\n{test}\n- **G-02** A thing.\n{test}");
            let expected = [format!("{PATH}:1: this item has no id, such as G-07")];
            assert_eq!(faults_of(&document, ""), expected, "{item}");
        }
        for name in ["a/b.rs:a_test", "a/b.rss::a_test", "a_test", "a/b.rs::tests::a_test"] {
            let document = format!("- **G-01** A thing.\n{test}, `{name}`");
            let expected = [format!("{PATH}:2: {name} is not a test's name")];
            assert_eq!(faults_of(&document, ""), expected);
        }
    }

    #[test]
    fn an_item_without_an_id_is_a_fault_among_the_promises() {
        let rest = "- Another.\n\nNot promised:\n\n- A third.\n\n## A section\n\n- A fourth.";
        let document = format!("Promised:\n\n- **G-01** A thing.\n  - `a/b.rs::a_test`\n{rest}");
        let expected = [format!("{PATH}:5: this item has no id, such as G-07")];
        assert_eq!(faults_of(&document, ""), expected);
    }

    #[test]
    fn an_unknown_id_in_another_text_is_a_fault() {
        let document = "- **G-01** A thing.\n  - `a/b.rs::a_test`";
        assert_eq!(faults_of(document, "(G-12)"), ["other.md: there is no promise G-12"]);
    }
}
