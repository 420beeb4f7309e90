//! Checks that every numbered case of the specifications has a test.

use std::{collections::BTreeSet, ops::RangeInclusive, path::Path};

/// A specification, its cases that are postponed, and the page that lists its open cases, if it may have any.
struct Specification {
    path: &'static str,
    later: &'static [(char, RangeInclusive<u16>)],
    open_in: Option<&'static str>,
}

const SPECIFICATIONS: [Specification; 4] = [
    Specification { path: "docs/spec/stages.md", later: &[], open_in: None },
    Specification {
        path: "docs/spec/channels.md",
        // Encrypted tokens are out of scope.
        later: &[('C', 200..=200)],
        open_in: None,
    },
    Specification { path: "docs/spec/hostile.md", later: &[], open_in: None },
    Specification {
        path: "docs/spec/store.md",
        later: &[],
        open_in: Some("examples/store/README.md"),
    },
];

/// The heading of the list of open cases.
const OPEN: &str = "## Open rows";

/// The heading of the table of the cases that are tested.
const SHOWN: &str = "## Rows and their tests";

/// What begins a line of a test's documentation that names further cases.
const ALSO: &str = "/// Also shows ";

/// A letter and a number, such as S-014.
type Id = (char, u16);

/// The letter of hostile inputs. Most of them are rows of the tests' tables, and each is run once.
const HOSTILE: char = 'K';

/// The folder of these tables.
const TABLES: &str = "tests/hostile";

/// The faults: cases without a test, tests of unknown cases, and hostile inputs with two tests.
pub(crate) fn faults<'a>(
    text: impl Fn(&str) -> &'a str,
    sources: impl Iterator<Item = (&'a Path, &'a str)>,
) -> Vec<String> {
    let mut tested = BTreeSet::new();
    let mut faults = Vec::new();
    let sources: Vec<(&Path, &str)> = sources.collect();
    let ids = sources.iter().flat_map(|(path, text)| {
        let has_tables = path.starts_with(TABLES);
        let row = move |line| if has_tables { row(line) } else { None };
        text.lines()
            .flat_map(move |line| named(line).into_iter().chain(row(line)).chain(also(line)))
    });
    for id in ids {
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
        let count = format!("There are {} cases.", cases.len());
        let is_hostile = cases.iter().any(|(letter, _)| *letter == HOSTILE);
        if is_hostile && !text(specification.path).contains(&count) {
            faults.push(format!("{}: does not say: {count}", specification.path));
        }
        let is_later = |(letter, number): &Id| {
            let mut later = specification.later.iter();
            later.any(|(of, numbers)| of == letter && numbers.contains(number))
        };
        let open = specification.open_in.map(|page| open(text(page))).unwrap_or_default();
        for id in cases.difference(&tested).filter(|id| !is_later(id) && !open.contains(id)) {
            faults.push(format!("{}: no test shows {}", specification.path, written(*id)));
        }
        for id in &open {
            let page = specification.open_in.unwrap_or_default();
            if tested.contains(id) {
                faults.push(format!("{page}: {} is open, and a test shows it", written(*id)));
            } else if !cases.contains(id) {
                faults.push(format!("{page}: {} is open, and no case", written(*id)));
            }
        }
        if let Some(page) = specification.open_in {
            let tested = cases.intersection(&tested).copied().collect();
            faults.extend(faults_of_table(page, text(page), &tested, &sources));
        }
        known.extend(cases);
    }
    let strays = tested.difference(&known);
    faults.extend(
        strays.map(|id| format!("a test shows {}, which no specification has", written(*id))),
    );
    faults
}

/// The cases that a page lists as open, in the lines below its heading and above the next one.
fn open(page: &str) -> BTreeSet<Id> {
    let lines = page.lines().skip_while(|line| *line != OPEN).skip(1);
    lines.take_while(|line| !line.starts_with('#')).flat_map(ids).collect()
}

/// The faults of the table of a page that says which test shows which case, if it has one.
fn faults_of_table(
    page: &str,
    text: &str,
    tested: &BTreeSet<Id>,
    sources: &[(&Path, &str)],
) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.lines().any(|line| line == SHOWN) {
        return faults;
    }
    let folder = Path::new(page).parent().unwrap_or(Path::new(""));
    let mut in_table = BTreeSet::new();
    for (id, test, file) in shown(text) {
        let path = folder.join(file);
        let source = sources.iter().find(|(of, _)| *of == path);
        if !source.is_some_and(|(_, source)| source.contains(&format!("fn {test}("))) {
            faults.push(format!("{page}: {file} has no test {test} for {}", written(id)));
        }
        if !in_table.insert(id) {
            faults.push(format!("{page}: the table has {} twice", written(id)));
        }
    }
    let missing = tested.difference(&in_table);
    faults.extend(missing.map(|id| format!("{page}: the table has no {}", written(*id))));
    let untested = in_table.difference(tested);
    faults
        .extend(untested.map(|id| format!("{page}: no test shows {} of the table", written(*id))));
    faults
}

/// The lines of this table: the case, the name of the test and its file.
fn shown(page: &str) -> impl Iterator<Item = (Id, &str, &str)> {
    let lines = page.lines().skip_while(|line| *line != SHOWN).skip(1);
    lines.take_while(|line| !line.starts_with('#')).filter_map(|line| {
        let (test, rest) = line.split_once("| `")?.1.split_once("` | [")?;
        let file = rest.split_once("](")?.1.strip_suffix(") |")?;
        Some((case(line)?, test, file))
    })
}

/// The further cases of a test: `/// Also shows .`
fn also(line: &str) -> impl Iterator<Item = Id> {
    line.trim_start().strip_prefix(ALSO).into_iter().flat_map(ids)
}

/// The ids among the words of a line.
fn ids(line: &str) -> impl Iterator<Item = Id> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    line.split(move |c| !is_part(c)).filter_map(|word| {
        let (letter, number) = word.split_once('-')?;
        id(letter, number)
    })
}

/// The case in a row of a table.
fn case(line: &str) -> Option<Id> {
    let cell = line.strip_prefix("| ")?.split(" |").next()?;
    let (letter, number) = cell.split_once('-')?;
    id(letter, number)
}

/// The hostile input whose row of a test's table begins here: `ws("K-017", ..`, in other calls or not, or
/// `"K-017",` alone. A comment or a message that quotes an id is no row.
fn row(line: &str) -> Option<Id> {
    let (before, rest) = line.trim_start().split_once('"')?;
    let (text, after) = rest.split_once('"')?;
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_';
    let is_function = |name: &str| name.chars().all(is_name);
    let is_argument = |name: &str| {
        let first = name.trim_end_matches(|c: char| c.is_ascii_uppercase() || ", ".contains(c));
        first.strip_suffix('(').is_some_and(|calls| calls.split('(').all(is_function))
    };
    let is_row = before.is_empty() || before == "id: " || is_argument(before);
    let (letter, number) = text.split_once('-')?;
    let id = id(letter, number).filter(|(letter, _)| *letter == HOSTILE);
    id.filter(|_| is_row && after.starts_with(','))
}

/// The case in the name of a function: `fn s_014_excess_is_reported`.
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
    let (Some(letter @ ('A' | 'C' | 'P' | 'S' | 'T' | 'X' | HOSTILE)), None) =
        (letters.next(), letters.next())
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
see S-002 in the text";

    const ANOTHER: &str = "| C-001 | a thing |\n| C-200 | later |";

    const INPUTS: &str = "There are 2 cases.\n| K-001 | an input |\n| K-002 | another |";

    fn text(path: &str) -> &'static str {
        match path {
            "docs/spec/stages.md" => SPECIFICATION,
            "docs/spec/channels.md" => ANOTHER,
            "docs/spec/store.md" => "| A-001 | S | 1 |\n| T-002 | unit |\n| P-003 | n |",
            "examples/store/README.md" => {
                "Not A-001.\n## Open rows\n\n- T-002, P-003: later\n## A-001"
            }
            _ => INPUTS,
        }
    }

    fn in_tables(source: &str) -> (&Path, &str) {
        (Path::new("tests/hostile/any.rs"), source)
    }

    /// The faults of the first specification; the others are fully tested.
    fn faults_of(sources: &[&str]) -> Vec<String> {
        let others =
            "fn c_001_a_thing_is() {\nws(\"K-001\", 1);\n\"K-002\",\nfn a_001_a_page_opens() {}";
        faults(|path| text(path), sources.iter().copied().chain([others]).map(in_tables))
    }

    /// The faults of the table of hostile inputs; the others are fully tested.
    fn faults_of_inputs(source: &str) -> Vec<String> {
        let others =
            "fn s_001_a() {}\nfn s_014_b() {}\nfn c_001_a() {}\nfn a_001_a_page_opens() {}";
        faults(|path| text(path), [others, source].map(in_tables).into_iter())
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
    fn a_case_of_the_store_is_tested_or_listed_as_open() {
        let others =
            "fn s_001_a() {}\nfn s_014_b() {}\nfn c_001_a() {}\nws(\"K-001\", 1);\n\"K-002\",";
        let faults_of = |store: &'static str| {
            faults(|path| text(path), [others, store].map(in_tables).into_iter())
        };
        assert!(faults_of("async fn a_001_a_page_opens() {").is_empty());
        assert!(faults_of("/// Also shows A-001.\nfn any() {").is_empty());
        assert_eq!(faults_of(""), ["docs/spec/store.md: no test shows A-001"]);
        let both = faults_of("/// Also shows A-001 and P-003.");
        assert_eq!(both, ["examples/store/README.md: P-003 is open, and a test shows it"]);
        let open = |path: &str| match path {
            "examples/store/README.md" => "## Open rows\nT-002, P-003, A-002",
            path => text(path),
        };
        let sources = [others, "fn a_001_a_page_opens() {"];
        let unknown = faults(open, sources.map(in_tables).into_iter());
        assert_eq!(unknown, ["examples/store/README.md: A-002 is open, and no case"]);
    }

    #[test]
    fn a_table_of_tests_has_each_tested_case_once_with_its_test() {
        let source = (Path::new("examples/store/tests/any.rs"), "async fn a_001_a_page_opens() {");
        let tested = BTreeSet::from([('A', 1), ('A', 2)]);
        let faults_of = |table: &str| {
            let page = format!("{SHOWN}\n\n| row | test | in |\n{table}\n## More\n");
            faults_of_table("examples/store/README.md", &page, &tested, &[source])
        };
        let row =
            |id: &str, test: &str| format!("| {id} | `{test}` | [tests/any.rs](tests/any.rs) |");
        let (one, two) = (row("A-001", "a_001_a_page_opens"), row("A-002", "a_001_a_page_opens"));
        assert!(faults_of(&format!("{one}\n{two}")).is_empty());
        assert_eq!(faults_of(&one), ["examples/store/README.md: the table has no A-002"]);
        assert_eq!(faults_of(&format!("{one}\n{two}\n{two}")).len(), 1);
        assert_eq!(faults_of(&format!("{one}\n{}", row("A-002", "gone"))).len(), 1);
        assert_eq!(
            faults_of(&format!("{one}\n{two}\n{}", row("A-003", "a_001_a_page_opens"))).len(),
            1
        );
        assert!(faults_of_table("README.md", "No table.", &tested, &[]).is_empty());
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
    fn the_number_of_hostile_inputs_is_stated() {
        let sources = "fn s_001_a() {}\nfn s_014_b() {}\nfn c_001_a() {}\nfn a_001_a_page_opens() {}\n\
                       ws(\"K-001\", 1);";
        let text = |path: &str| match text(path) {
            INPUTS => "There are 2 cases.\n| K-001 | an input |",
            other => other,
        };
        let expected = ["docs/spec/hostile.md: does not say: There are 1 cases."];
        assert_eq!(faults(text, [sources].map(in_tables).into_iter()), expected);
    }

    #[test]
    fn only_rows_of_the_tables_show_hostile_inputs() {
        for line in [
            "ws(\"K-017\", \"an input\", Close),",
            "    at(SMALL, \"K-017\", \"an input\", Close),",
            "    large(at(\"K-017\", \"an input\", Close)),",
            "    v1(\"K-017\", r#\"[\"1\"]\"#, Ok),",
            "    \"K-017\",",
            "    id: \"K-017\",",
        ] {
            assert_eq!(row(line), Some((HOSTILE, 17)), "{line}");
        }
        for line in [
            "// ws(\"K-017\", \"an input\", Close),",
            "/// See \"K-017\", and others.",
            "assert!(is_calm, \"K-017\");",
            "println!(\"K-017\", );",
            "let gone = [\"K-017\", \"K-018\"];",
            "ws(\"K-017\")",
            "ws(\"S-017\", \"an input\", Close),",
        ] {
            assert_eq!(row(line), None, "{line}");
        }
        let elsewhere = [(Path::new("src/lib.rs"), "ws(\"K-001\", 1);")];
        let faults = faults(|path| text(path), elsewhere.into_iter());
        assert!(faults.contains(&"docs/spec/hostile.md: no test shows K-001".to_owned()));
    }

    #[test]
    fn a_test_of_an_unknown_case_is_a_fault() {
        let sources = ["fn s_001_a() {}\nfn s_014_b() {}\nfn s_999_c() {}"];
        assert_eq!(faults_of(&sources), ["a test shows S-999, which no specification has"]);
    }
}
