//! What no other tool checks: the project's own invariants, and that its texts tell the truth.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    cases,
    run::{Failure, Outcome, root},
};

/// How long a source file may be. The limit is there for files that have become several things, and
/// is so wide that no file is cut in two to pass it.
const MAX_LINES: usize = 1500;

/// How long the view of the whole may be.
const MAX_ARCHITECTURE: usize = 360;

/// What a file that calls itself pure does not do: wait, spawn, lock, read a clock, log.
const IMPURE: [&str; 8] = [
    ".await",
    "async fn",
    "spawn(",
    "Mutex",
    "RwLock",
    "Instant::now",
    "SystemTime::now",
    "tracing::",
];

pub(crate) fn all() -> Outcome {
    println!("\n=== tidiness");
    let files = Files::read(&root())?;
    let checks = [
        sources_are_short(&files),
        pure_files_are_pure(&files),
        log_fields_are_escaped(&files),
        manifests_share_the_lints(&files),
        lock_files_name_no_registry(&files),
        architecture_names_what_is_there(&files),
        links_lead_somewhere(&files),
        readme_shows_the_program(&files),
        no_example_imports_two_globs(&files),
        test_kits_bring_a_clock(&files),
        every_case_has_a_test(&files),
    ];
    let faults: Vec<String> = checks.into_iter().flatten().collect();
    if faults.is_empty() { Ok(()) } else { Err(Failure::new(faults.join("\n"))) }
}

/// The project's text files, by their path from its folder.
struct Files(Vec<(PathBuf, String)>);

impl Files {
    fn read(root: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        collect(root, root, &mut files)?;
        files.sort();
        Ok(Self(files))
    }

    fn named<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = (&'a Path, &'a str)> {
        let named = move |(path, _): &&(PathBuf, String)| path.to_string_lossy().ends_with(ending);
        self.0.iter().filter(named).map(|(path, text)| (&**path, &**text))
    }

    fn text(&self, path: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == Path::new(path));
        found.map_or("", |(_, text)| text)
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, String)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if ["target", "node_modules", ".git"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.push((path.strip_prefix(root).unwrap_or(&path).to_owned(), text));
        }
    }
    Ok(())
}

fn sources_are_short(files: &Files) -> Vec<String> {
    let lines = |(path, text): (&Path, &str)| (path.display().to_string(), text.lines().count());
    let long = files.named(".rs").map(lines).filter(|(_, count)| *count > MAX_LINES);
    long.map(|(path, count)| format!("{path}: {count} lines, expected at most {MAX_LINES}"))
        .collect()
}

fn pure_files_are_pure(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    let says_so = |text: &str| {
        let mut documentation = text.lines().take_while(|line| line.starts_with("//!"));
        documentation.any(|line| line.contains("Pure"))
    };
    for (path, text) in files.named(".rs") {
        // A folder's `mod.rs` speaks for all of it.
        let folder = path.with_file_name("mod.rs");
        if !says_so(text) && !says_so(files.text(&folder.to_string_lossy())) {
            continue;
        }
        for (at, line) in lines_of_code(text) {
            let code = line.split("//").next().unwrap_or_default();
            for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                faults.push(format!("{}:{at}: a pure file has {word:?}", path.display()));
            }
        }
    }
    faults
}

/// Fields that are written with `%`, since the program itself chooses what they say. A string would stand
/// in quotes, and a search for the id of a trace as other programs write it would not find the line.
const AS_IT_IS: [&str; 5] = ["trace_id", "stage", "pipeline", "address", "peer"];

/// A field given with `%` is written as it is, newlines and all. A string is written in quotes. The text
/// of an error may be anybody's: it may quote an item, and items come from outside.
fn log_fields_are_escaped(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    let is_test = |path: &Path| {
        path.starts_with("xtask") || path.starts_with("tests") || {
            path.components()
                .any(|part| ["tests", "benches"].iter().any(|it| part.as_os_str() == *it))
        }
    };
    for (path, text) in files.named(".rs").filter(|(path, _)| !is_test(path)) {
        for (at, line) in lines_of_code(text) {
            let code = line.split("//").next().unwrap_or_default();
            if writes_a_field_as_it_is(code) {
                let path = path.display();
                faults.push(format!("{path}:{at}: a field with `%` is not escaped: use `shown`"));
            }
        }
    }
    faults
}

/// The lines of a source file with their numbers, without the items that are only there for tests.
fn lines_of_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    enum At {
        Code,
        /// Attributes, of an item for tests.
        Attributes,
        /// Such an item, which ends with a brace in the first column.
        Item,
    }
    let mut at = At::Code;
    let mut is_code = move |line: &str| match at {
        At::Code if ["#[cfg(test)]", "#[cfg(all(test,"].iter().any(|it| line.starts_with(it)) => {
            at = At::Attributes;
            false
        }
        At::Code => true,
        At::Attributes => {
            if line.starts_with(|first: char| first.is_ascii_alphabetic()) {
                at = if line.ends_with(['{', '(']) { At::Item } else { At::Code };
            }
            false
        }
        At::Item => {
            if line.starts_with('}') {
                at = At::Code;
            }
            false
        }
    };
    (1..).zip(text.lines()).filter(move |(_, line)| is_code(line))
}

/// Whether there is a `%` before an expression, as only the macros of `tracing` have it; rustfmt puts a
/// space behind that of a remainder. Fields of which the program decides what they say do not count.
fn writes_a_field_as_it_is(code: &str) -> bool {
    let sigil = |(at, _): &(usize, &str)| {
        let before = code[..*at].chars().next_back().unwrap_or(' ');
        let after = code[at + 1..].chars().next().unwrap_or(' ');
        [' ', '(', '='].contains(&before)
            && (after.is_ascii_lowercase() || ['(', '&', '*'].contains(&after))
    };
    let is_known = |(at, _): &(usize, &str)| {
        let (before, after) = (code[..*at].trim_end(), &code[at + 1..]);
        let word = |c: char| c.is_alphanumeric() || c == '_';
        // `name = %value`, or `%name`.
        let name = match before.strip_suffix('=') {
            Some(before) => before.trim_end().rsplit(|c| !word(c)).next().unwrap_or_default(),
            None => after.split(|c| !word(c)).next().unwrap_or_default(),
        };
        AS_IT_IS.contains(&name)
    };
    code.contains("field::display")
        || code.contains("as &dyn")
        || code.match_indices('%').filter(sigil).any(|it| !is_known(&it))
}

fn manifests_share_the_lints(files: &Files) -> Vec<String> {
    let packages = files.named("Cargo.toml").filter(|(_, text)| text.contains("[package]"));
    let strays = packages.filter(|(_, text)| !text.contains("[lints]\nworkspace = true"));
    strays.map(|(path, _)| format!("{}: does not share the lints", path.display())).collect()
}

fn lock_files_name_no_registry(files: &Files) -> Vec<String> {
    let named = files.named("package-lock.json").filter(|(_, text)| text.contains("\"resolved\""));
    named.map(|(path, _)| format!("{}: names where packages came from", path.display())).collect()
}

/// Every file and folder in backticks exists, if only somewhere.
fn architecture_names_what_is_there(files: &Files) -> Vec<String> {
    let text = files.text("ARCHITECTURE.md");
    let paths: Vec<String> =
        files.0.iter().map(|(path, _)| format!("/{}", path.display())).collect();
    let is_path = |name: &&str| {
        (name.contains('/') || name.ends_with(".rs")) && !name.contains([' ', '*', ':', '{', '<'])
    };
    let mut faults: Vec<String> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(is_path)
        .filter(|name| !paths.iter().any(|path| path.contains(&format!("/{name}"))))
        .map(|name| format!("ARCHITECTURE.md: there is no {name}"))
        .collect();
    let count = text.lines().count();
    if count == 0 || count > MAX_ARCHITECTURE {
        faults.push(format!("ARCHITECTURE.md: {count} lines, expected 1 to {MAX_ARCHITECTURE}"));
    }
    faults
}

fn links_lead_somewhere(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    // A text within a crate's sources is part of its documentation, and checked with it.
    let stands_alone = |path: &Path| !path.components().any(|part| part.as_os_str() == "src");
    for (path, text) in files.named(".md").filter(|(path, _)| stands_alone(path)) {
        let folder = root().join(path.parent().unwrap_or(Path::new("")));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let is_local = !file.is_empty() && !link.contains("://");
            if is_local && !folder.join(file).exists() {
                faults.push(format!("{}: {link} leads nowhere", path.display()));
            }
        }
    }
    faults
}

fn every_case_has_a_test(files: &Files) -> Vec<String> {
    let sources = files.named(".rs").filter(|(path, _)| !path.starts_with("xtask"));
    cases::faults(|path| files.text(path), sources.map(|(_, text)| text))
}

/// Stages and channels both have a `HandleInfo` and a `Subscription`, so with a glob of each, the names
/// are ambiguous. Who copies an import from a text or an example is to get one that works.
fn no_example_imports_two_globs(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in files.named(".md").chain(files.named(".rs")) {
        if path.starts_with("xtask") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if line.contains("ws::*") {
                let at = number + 1;
                faults.push(format!("{}:{at}: imports pipeline::ws by a glob", path.display()));
            }
        }
    }
    faults
}

/// The tests that the documentation shows pause the clock. The project's own tests can do so in any case,
/// so only users would see that it is missing.
fn test_kits_bring_a_clock(files: &Files) -> Vec<String> {
    let manifests = ["pipeline-core/Cargo.toml", "pipeline-ws-sink/Cargo.toml"];
    let lacks = |path: &&str| {
        let mut lines = files.text(path).lines();
        !lines.any(|line| line.starts_with("test-kit = ") && line.contains("\"tokio/test-util\""))
    };
    let faults = manifests.into_iter().filter(lacks);
    faults.map(|path| format!("{path}: test-kit does not turn on tokio's test-util")).collect()
}

/// The README shows the forty-line example as it is.
fn readme_shows_the_program(files: &Files) -> Vec<String> {
    let program = files.text("examples/forty_lines.rs");
    let shown = program.split_once("\n\n").map_or(program, |(_, code)| code).trim();
    if !shown.is_empty() && files.text("README.md").contains(shown) {
        Vec::new()
    } else {
        vec!["README.md: does not show examples/forty_lines.rs as it is".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::{lines_of_code, writes_a_field_as_it_is};

    #[test]
    fn a_field_that_is_written_as_it_is_is_told_from_a_remainder() {
        for code in [
            "tracing::info!(%topic, \"joined\");",
            "tracing::warn!(id, error = %error, \"refused\");",
            "    target: JOIN, \"ref\" = %&*reference, params,",
            "    peer = peer.map(field::display),",
            "    tracing::error!(stage = %self.stage, %reason, \"a worker failed\");",
            "    error = &error as &dyn std::error::Error,",
        ] {
            assert!(writes_a_field_as_it_is(code), "{code}");
        }
        for code in [
            "let rest = all % many;",
            "rest %= many;",
            "(\"a%20b\", \"100%\")",
            "tracing::debug!(%peer, trace_id = %trace.trace_id(), \"arrived\");",
            "tracing::warn!(stage = %self.report.stage, reason = shown(reason), \"ended\");",
        ] {
            assert!(!writes_a_field_as_it_is(code), "{code}");
        }
    }

    #[test]
    fn items_for_tests_are_passed_over_and_nothing_else_is() {
        let text = "use a;\n#[cfg(test)]\nmod tests;\nfn b() {}\n#[cfg(test)]\nimpl C {\n    \
                    fn d() {}\n}\nfn e() {\n}\n#[cfg(all(test, unix))]\n#[expect(f)]\nmod tests {\n\
                        \x20   fn g() {}\n}\nfn h() {}";
        let lines: Vec<_> = lines_of_code(text).collect();
        let expected =
            [(1, "use a;"), (4, "fn b() {}"), (9, "fn e() {"), (10, "}"), (16, "fn h() {}")];
        assert_eq!(lines, expected);
    }
}
