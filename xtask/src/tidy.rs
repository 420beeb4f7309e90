//! Checks of the project's own invariants and of its texts, which no other tool has.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    cases, guarantees,
    run::{Failure, Outcome, root},
};

/// The longest ARCHITECTURE.md, in lines.
const MAX_ARCHITECTURE: usize = 360;

/// The longest program of a recipe, in lines.
const MAX_RECIPE: usize = 100;

/// Words and phrases that the project does not use. CONTRIBUTING explains them under "Plain English", and
/// lists others, which a check would also find where they are right.
const DIALECT: [&str; 20] = [
    "anybody",
    "are told",
    "be it that",
    "beside",
    "come to its end",
    "comes to its end",
    "dear",
    "dearer",
    "dearest",
    "everybody",
    "goes on",
    "hands out",
    "is told",
    "let go",
    "lets go",
    "nobody",
    "of late",
    "somebody",
    "those who",
    "whoever",
];

/// Words that do not begin a doc comment: its first sentence says what the item is.
const NO_SUBJECT: [&str; 3] = ["It ", "Who ", "Whoever "];

/// Code that a file that calls itself pure does not have: it does not wait, spawn, lock, read a clock or log.
const IMPURE: [&str; 10] = [
    ".await",
    "async fn",
    "spawn(",
    "Mutex",
    "RwLock",
    "Instant::now",
    "SystemTime::now",
    "tracing::",
    "log_line!",
    "limited!",
];

pub(crate) fn all() -> Outcome {
    println!("\n=== tidiness");
    let files = Files::read(&root())?;
    let checks = [
        pure_files_are_pure(&files),
        log_fields_are_escaped(&files),
        metrics_are_registered_by_telemetry(&files),
        lines_of_sockets_are_contained(&files),
        the_wall_clock_is_read_in_one_place(&files),
        manifests_share_the_lints(&files),
        manifests_list_every_test(&files),
        published_packages_are_complete(&files),
        dependencies_are_explained(&files),
        lock_files_name_no_registry(&files),
        architecture_names_what_is_there(&files),
        architecture_names_every_package(&files),
        named_pages_exist(&files),
        links_lead_somewhere(&files),
        readme_shows_the_program(&files),
        no_example_imports_two_globs(&files),
        test_kits_bring_a_clock(&files),
        recipes_are_short(&files),
        every_case_has_a_test(&files),
        every_promise_has_a_test(&files),
        texts_are_plain_english(&files),
        docs_name_their_item(&files),
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

/// Fields that may be written with `%`, because their values come from the program. A string would be
/// quoted, and a search for a trace id as other programs write it would not find the line.
const AS_IT_IS: [&str; 5] = ["trace_id", "stage", "pipeline", "address", "peer"];

/// Fields with text from outside are strings, which are quoted and escaped. A field with `%` is written
/// unescaped, newlines included. The text of an error may quote an item, and items come from outside.
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

/// The lines of a source file with their numbers, without items that exist only for tests.
fn lines_of_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    enum At {
        Code,
        /// Attributes of an item for tests.
        Attributes,
        /// An item for tests, which ends with a brace in the first column.
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

/// Whether there is a `%` before an expression, as only `tracing`'s macros have it; rustfmt puts a
/// space after a remainder's. Fields in [`AS_IT_IS`] do not count.
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

/// Code that gets a metric from a recorder. Only `Telemetry` does that, because its handles catch panics.
const REGISTERS: [&str; 6] = [
    ".register_counter(",
    ".register_gauge(",
    ".register_histogram(",
    "counter!(",
    "gauge!(",
    "histogram!(",
];

/// A recorder may panic, also while a value is dropped, and then the process would abort.
fn metrics_are_registered_by_telemetry(files: &Files) -> Vec<String> {
    let crates = ["pipeline-core/src", "pipeline-ws-sink/src", "pipeline-inspect/src", "src"];
    let exempt = ["pipeline-core/src/telemetry/mod.rs"];
    uses(files, &crates, &exempt, &REGISTERS, "registers a metric without `Telemetry`")
}

/// Names of code that calls the log's subscriber.
const LOGS: [&str; 18] = [
    "tracing",
    "::log::",
    "use log",
    "Instrument",
    "instrument",
    "log!",
    "trace!",
    "debug!",
    "info!",
    "warn!",
    "error!",
    "event!",
    "span!",
    "trace_span!",
    "debug_span!",
    "info_span!",
    "warn_span!",
    "error_span!",
];

/// A subscriber may panic, and then a client would not learn of the end of its channel or socket.
fn lines_of_sockets_are_contained(files: &Files) -> Vec<String> {
    let exempt = ["contained.rs", "line_limit.rs"]
        .map(|file| format!("pipeline-ws-sink/src/telemetry/{file}"));
    let exempt = exempt.each_ref().map(String::as_str);
    uses(
        files,
        &["pipeline-ws-sink/src"],
        &exempt,
        &LOGS,
        "logs without `log_line!`, `limited!`, `contained_span!` or `InSpan`",
    )
}

/// The wall clock may be set while the program runs. The published crates that need it read it in one file
/// each, and no timer depends on it. Leases of durable sources do, because processes share them.
fn the_wall_clock_is_read_in_one_place(files: &Files) -> Vec<String> {
    let crates = [
        "pipeline-core",
        "pipeline-ws-sink",
        "pipeline-statsd",
        "pipeline-inspect",
        "pipeline-sources",
        "pipeline-cluster",
        ".",
    ];
    let crates = crates.map(|folder| Path::new(folder).join("src").display().to_string());
    let crates = crates.each_ref().map(|folder| folder.trim_start_matches("./"));
    let reads = ["SystemTime::now", "UNIX_EPOCH.elapsed"];
    let clocks = ["pipeline-ws-sink", "pipeline-sources", "pipeline-cluster"];
    let clocks = clocks.map(|folder| format!("{folder}/src/clock.rs"));
    let clocks = clocks.each_ref().map(String::as_str);
    uses(files, &crates, &clocks, &reads, "reads the wall clock")
}

/// The lines of some folders that use some code, besides those of some files.
fn uses(
    files: &Files,
    folders: &[&str],
    exempt: &[&str],
    code: &[&str],
    fault: &str,
) -> Vec<String> {
    let mut faults = Vec::new();
    let is_checked = |path: &Path| {
        folders.iter().any(|it| path.starts_with(it))
            && exempt.iter().all(|it| path != Path::new(it))
    };
    for (path, text) in files.named(".rs").filter(|(path, _)| is_checked(path)) {
        for (at, line) in lines_of_code(text) {
            let line = line.split("//").next().unwrap_or_default();
            if code.iter().any(|it| has_words(line, it)) {
                faults.push(format!("{}:{at}: {fault}", path.display()));
            }
        }
    }
    faults
}

/// Whether a line has some code that is not a part of a longer name or path.
fn has_words(line: &str, code: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(code).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + code.len()..]);
        let is_start = code.starts_with(is_name) || code.starts_with("::");
        !(is_start && before.ends_with(is_name)
            || code.ends_with(is_name) && after.starts_with(is_name))
    })
}

/// The template is a workspace of its own, as it will be where it is copied to.
fn manifests_share_the_lints(files: &Files) -> Vec<String> {
    let packages = files
        .named("Cargo.toml")
        .filter(|(path, text)| text.contains("[package]") && !path.starts_with("template"));
    let strays = packages.filter(|(_, text)| !text.contains("[lints]\nworkspace = true"));
    strays.map(|(path, _)| format!("{}: does not share the lints", path.display())).collect()
}

/// The tests and the benches of the whole are listed in the manifests of their folders: cargo does not look
/// for them there, and would not run one that is missing.
fn manifests_list_every_test(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for folder in ["benches", "tests"] {
        let manifest = Path::new(folder).join("Cargo.toml");
        let listed = files.text(&manifest.to_string_lossy());
        for (path, _) in files.named(".rs") {
            let Ok(rest) = path.strip_prefix(folder) else { continue };
            let depth = rest.components().count();
            let is_target = depth == 1 || depth == 2 && rest.ends_with("main.rs");
            if is_target && !listed.contains(&format!("path = \"{}\"", rest.display())) {
                faults.push(format!("{}: does not list {}", manifest.display(), rest.display()));
            }
        }
    }
    faults
}

/// Packages that can be published bring the licences' texts and a README of their own.
fn published_packages_are_complete(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in files.named("Cargo.toml") {
        if !text.contains("[package]") || text.contains("publish = false") {
            continue;
        }
        for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
            let own = path.with_file_name(name);
            if files.text(&own.to_string_lossy()) != files.text(name) {
                faults.push(format!("{}: is not the project's {name}", own.display()));
            }
        }
        let readme = path.with_file_name("README.md");
        if files.text(&readme.to_string_lossy()).is_empty() {
            faults.push(format!("{}: is missing", readme.display()));
        }
        if !text.contains("readme = \"README.md\"") {
            faults.push(format!("{}: does not name its README.md", path.display()));
        }
    }
    faults
}

/// The two tables in docs/dependencies.md, of the uses and of the advisories, have the direct dependencies of the
/// published packages, and no others.
fn dependencies_are_explained(files: &Files) -> Vec<String> {
    const PAGE: &str = "docs/dependencies.md";
    let page = files.text(PAGE);
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let explained: BTreeSet<&str> = rows.collect();
    let read: BTreeSet<&str> = advisories(page).collect();
    let published = files
        .named("Cargo.toml")
        .filter(|(_, text)| text.contains("[package]") && !text.contains("publish = false"));
    let used: BTreeSet<&str> = published.flat_map(|(_, text)| dependencies(text)).collect();
    let missing = used.difference(&explained).map(|name| format!("{PAGE}: has no line for {name}"));
    let stale = explained.difference(&used).map(|name| format!("{PAGE}: {name} is not used"));
    let unread = used.difference(&read).map(|name| format!("{PAGE}: no advisories of {name}"));
    let unused = read.difference(&used);
    let unused = unused.map(|name| format!("{PAGE}: advisories of {name}, which is not used"));
    missing.chain(stale).chain(unread).chain(unused).collect()
}

/// The crates in the table of advisories of direct dependencies. A row may have several.
fn advisories(page: &str) -> impl Iterator<Item = &str> {
    let table = page.split("\nDirect dependencies:\n").nth(1).unwrap_or_default();
    let rows = table.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let rows = rows.map_while(|line| line.strip_prefix("| ")?.split(" |").next());
    rows.flat_map(|names| names.split(", "))
}

/// The dependencies of a manifest, besides those of the project and of its tests.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut is_table = false;
    manifest.lines().filter_map(move |line| {
        if line.starts_with('[') {
            is_table = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
            is_table &= !line.contains("workspace");
            return None;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name = line.split(|c| !is_name(c)).next().unwrap_or_default();
        (is_table && !name.is_empty() && !name.starts_with("pipeline-")).then_some(name)
    })
}

fn lock_files_name_no_registry(files: &Files) -> Vec<String> {
    let named = files.named("package-lock.json").filter(|(_, text)| text.contains("\"resolved\""));
    named.map(|(path, _)| format!("{}: names where packages came from", path.display())).collect()
}

/// Every file and folder in backticks exists, in any folder.
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

/// The folders of packages are in the code map.
fn architecture_names_every_package(files: &Files) -> Vec<String> {
    let text = files.text("ARCHITECTURE.md");
    let folders = files.named("/Cargo.toml").filter_map(|(path, _)| path.parent());
    let folders = folders.filter(|folder| folder.components().count() == 1);
    folders
        .filter(|folder| !text.contains(&format!("`{}/", folder.display())))
        .map(|folder| format!("ARCHITECTURE.md: does not name {}/", folder.display()))
        .collect()
}

/// The pages of a folder `docs/` that sources and texts name in backticks exist.
fn named_pages_exist(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in files.named(".rs").chain(files.named(".md")) {
        let named = text.split('`').filter(|it| it.starts_with("docs/") && it.ends_with(".md"));
        for page in named.filter(|page| !page.contains(char::is_whitespace)) {
            if files.named(page).next().is_none() {
                faults.push(format!("{}: there is no {page}", path.display()));
            }
        }
    }
    faults
}

fn links_lead_somewhere(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    // A text within a crate's sources is part of its documentation, and checked with it. The guide is a book.
    let stands_alone = |path: &Path| {
        path.starts_with("docs/book") || !path.components().any(|part| part.as_os_str() == "src")
    };
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
    cases::faults(|path| files.text(path), sources)
}

fn every_promise_has_a_test(files: &Files) -> Vec<String> {
    let texts = files.named(".md").chain(files.named(".rs"));
    // This one's own tests have ids that no promise has.
    let texts = texts.filter(|(path, _)| *path != Path::new("xtask/src/guarantees.rs"));
    guarantees::faults(|path| files.text(path), texts)
}

/// The endings of files whose texts are in plain English: sources, manifests and other configuration, pages with
/// their styles, scripts, and the dashboard.
const TEXTS: [&str; 12] = [
    ".rs",
    ".md",
    ".toml",
    ".yml",
    ".js",
    ".mjs",
    ".cjs",
    ".html",
    ".css",
    ".sh",
    ".ci/run",
    "docs/grafana/dashboard.json",
];

/// The files whose texts are in plain English: not the specification and the recordings, nor the two that
/// list the words.
fn texts(files: &Files) -> impl Iterator<Item = (&Path, &str)> {
    let exempt = ["docs/spec", "tests/golden", "CONTRIBUTING.md", "xtask/src/tidy.rs"];
    let is_checked = move |path: &Path| !exempt.iter().any(|it| path.starts_with(it));
    let named = TEXTS.iter().flat_map(|ending| files.named(ending));
    named.filter(move |(path, _)| is_checked(path))
}

fn texts_are_plain_english(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in texts(files) {
        let mut before = "";
        for (at, line) in (1..).zip(text.lines()) {
            let line = without_marks(line);
            let broken =
                || dialect(before).is_none().then(|| dialect(&format!("{before} {line}")))?;
            if let Some(word) = dialect(line).or_else(broken) {
                faults.push(format!("{}:{at}: says {word:?}", path.display()));
            }
            before = line;
        }
    }
    faults
}

/// A line without its indentation and the marks of a comment, so that it continues the line before.
fn without_marks(line: &str) -> &str {
    line.trim().trim_start_matches(['/', '!', '#', '*']).trim_start()
}

/// The first of the words of [`DIALECT`] in a line, in any case. Words in names count too.
fn dialect(line: &str) -> Option<&'static str> {
    let line = line.to_lowercase().replace('_', " ");
    let is_word = |(at, found): (usize, &str)| {
        let (before, after) = (&line[..at], &line[at + found.len()..]);
        !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric)
    };
    DIALECT.into_iter().find(|word| line.match_indices(word).any(is_word))
}

/// A doc comment's first sentence has the item as its subject, or is a noun.
fn docs_name_their_item(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in
        texts(files).filter(|(path, _)| path.extension().is_some_and(|it| it == "rs"))
    {
        for at in nameless_docs(text) {
            faults.push(format!("{}:{at}: does not say what the item is", path.display()));
        }
    }
    faults
}

/// The lines that begin a doc comment with a word of [`NO_SUBJECT`].
fn nameless_docs(text: &str) -> impl Iterator<Item = usize> {
    let mut is_doc = false;
    (1..).zip(text.lines()).filter_map(move |(at, line)| {
        let line = line.trim_start();
        let doc = ["/// ", "//! "].iter().find_map(|it| line.strip_prefix(it));
        let begins = doc.is_some() && !is_doc;
        is_doc = line.starts_with("///") || line.starts_with("//!");
        let is_nameless = |doc: &str| NO_SUBJECT.iter().any(|it| doc.starts_with(it));
        (begins && doc.is_some_and(is_nameless)).then_some(at)
    })
}

/// Imports in texts and examples name what they use, so that they work when they are copied.
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

/// A recipe is read in one go: its program, which its tests follow, has at most 100 lines.
fn recipes_are_short(files: &Files) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in
        files.named(".rs").filter(|(path, _)| path.starts_with("examples/recipes/src"))
    {
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
        if lines > MAX_RECIPE {
            let path = path.display();
            faults.push(format!(
                "{path}: {lines} lines before the tests, expected {MAX_RECIPE} at most"
            ));
        }
    }
    faults
}

/// The README shows the quickstart as it is.
fn readme_shows_the_program(files: &Files) -> Vec<String> {
    let program = files.text("examples/quickstart.rs");
    let shown = program.split_once("\n\n").map_or(program, |(_, code)| code).trim();
    if !shown.is_empty() && files.text("README.md").contains(shown) {
        Vec::new()
    } else {
        vec!["README.md: does not show examples/quickstart.rs as it is".to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::{
        DIALECT, Files, dependencies_are_explained, dialect, lines_of_code,
        lines_of_sockets_are_contained, metrics_are_registered_by_telemetry, nameless_docs,
        recipes_are_short, texts_are_plain_english, the_wall_clock_is_read_in_one_place,
        writes_a_field_as_it_is,
    };

    #[test]
    fn a_recipe_has_at_most_100_lines_before_its_tests() {
        let recipe = |lines: usize| {
            let text = "line\n".repeat(lines) + "#[cfg(test)]\n" + &"test\n".repeat(50);
            recipes_are_short(&Files(vec![("examples/recipes/src/a.rs".into(), text)]))
        };
        assert_eq!(recipe(100), Vec::<String>::new());
        assert_eq!(recipe(101).len(), 1);
    }

    #[test]
    fn dialect_is_found_in_every_kind_of_text() {
        for (path, line) in [
            ("src/lib.rs", "// nobody waits"),
            ("docs/tour.md", "Nobody waits."),
            ("Cargo.toml", "# nobody waits"),
            (".github/workflows/ci.yml", "# nobody waits"),
            ("src/page/app.js", "// nobody waits"),
            ("tests/interop/suite.mjs", "// nobody waits"),
            ("tests/interop/reporter.cjs", "// nobody waits"),
            ("src/page/index.html", "<p>Nobody waits."),
            ("src/page/style.css", "/* nobody waits */"),
            ("docs/grafana/dashboard.json", "\"title\": \"Nobody waits\","),
            ("docs/start.sh", "# nobody waits"),
            (".ci/run", "# nobody waits"),
        ] {
            let files = Files(vec![(path.into(), format!("\n{line}\n"))]);
            assert_eq!(texts_are_plain_english(&files), [format!("{path}:2: says \"nobody\"")]);
        }
        let golden = Files(vec![("tests/golden/index.json".into(), "nobody".to_owned())]);
        assert!(texts_are_plain_english(&golden).is_empty());
    }

    #[test]
    fn dialect_is_found_as_whole_words_in_any_case() {
        for word in DIALECT {
            for line in [
                format!("/// {word} waits is woken."),
                format!("// It is for {}.", word.to_uppercase()),
                format!("fn {}_waits() {{", word.replace(' ', "_")),
                format!("No{word}, but {word}\u{2019}s too."),
            ] {
                assert_eq!(dialect(&line), Some(word), "{line}");
            }
            for line in [format!("let {word}s = 1;"), format!("struct No{word};"), String::new()] {
                assert_eq!(dialect(&line), None, "{line}");
            }
        }
        assert_eq!(dialect("besides, those whole words"), None);
    }

    /// The faults of a check in a file with one line.
    fn faults_of(check: fn(&Files) -> Vec<String>, path: &str, line: &str) -> usize {
        check(&Files(vec![(path.into(), format!("{line}\n"))])).len()
    }

    #[test]
    fn code_that_calls_the_log_of_sockets_is_found() {
        let check = lines_of_sockets_are_contained;
        for line in [
            "tracing::info!(topic, \"joined\");",
            "let span = ContainedSpan::new(|| tracing::info_span!(\"socket\"));",
            "let span = tracing::Span::current();",
            "    debug_span!(\"join\").in_scope(run)",
            "#[tracing::instrument]",
            "#[instrument(skip_all)]",
            "use tracing::warn;",
            "use tracing as t;",
            "    warn!(topic, \"refused\");",
            "::log::warn!(\"refused\");",
            "use log::{info, warn};",
            "log::log!(Level::Warn, \"refused\");",
            "future.instrument(span).await;",
        ] {
            assert_eq!(faults_of(check, "pipeline-ws-sink/src/socket.rs", line), 1, "{line}");
            assert_eq!(
                faults_of(check, "pipeline-ws-sink/src/telemetry/log.rs", line),
                1,
                "{line}"
            );
            for path in ["pipeline-ws-sink/src/telemetry/contained.rs", "pipeline-core/src/lib.rs"]
            {
                assert_eq!(faults_of(check, path, line), 0, "{line}");
            }
        }
        for line in [
            "log_line!(DEBUG, ?end, \"closing socket\");",
            "limited!(lines, WARN, \"refused\");",
            "let span = contained_span!(Level::INFO, \"socket\", id = Empty);",
            "let span = log::join_span();",
            "        log::{self, MessageLog},",
            "use crate::telemetry::log::join_span;",
            "// warn! is written by tracing",
            "retracing();",
        ] {
            assert_eq!(faults_of(check, "pipeline-ws-sink/src/socket.rs", line), 0, "{line}");
        }
    }

    #[test]
    fn code_that_registers_a_metric_is_found() {
        let check = metrics_are_registered_by_telemetry;
        for line in ["recorder.register_gauge(&key, &meta);", "metrics::counter!(\"sent\")"] {
            assert_eq!(faults_of(check, "pipeline-core/src/lib.rs", line), 1, "{line}");
            assert_eq!(faults_of(check, "pipeline-core/src/telemetry/mod.rs", line), 0, "{line}");
        }
        assert_eq!(faults_of(check, "pipeline-core/src/lib.rs", "telemetry.counter(\"sent\")"), 0);
    }

    #[test]
    fn code_that_reads_the_wall_clock_is_found() {
        let check = the_wall_clock_is_read_in_one_place;
        let line = "let now = std::time::SystemTime::now();";
        for path in ["pipeline-core/src/lib.rs", "pipeline-statsd/src/udp.rs", "src/serve.rs"] {
            assert_eq!(faults_of(check, path, line), 1, "{path}");
        }
        for path in
            ["pipeline-ws-sink/src/clock.rs", "examples/room/src/http.rs", "load/src/lib.rs"]
        {
            assert_eq!(faults_of(check, path, line), 0, "{path}");
        }
        let line = "/// let now = SystemTime::now();";
        assert_eq!(faults_of(check, "pipeline-ws-sink/src/token/mod.rs", line), 0);
    }

    #[test]
    fn a_dependency_without_a_line_and_a_line_without_a_dependency_are_found() {
        let manifest = "[workspace.dependencies]\nclap = \"4\"\n[package]\n[dependencies]\n# A comment.\n\
                        pipeline-core.workspace = true\nserde = { version = \"1\" }\nslab.workspace = true\n\
                        [target.'cfg(unix)'.dependencies]\nrustix = \"1\"\n[dev-dependencies]\nloom = \"1\"\n";
        let page = "| crate | for |\n| --- | --- |\n| `serde` | all |\n| `rand` | none |\n\n\
                    Direct dependencies:\n\n| crate | version |\n| --- | --- |\n| serde | 1 |\n\
                    | log, slab | 1 |\n\n| crate | version |\n| --- | --- |\n| other | 1 |\n";
        let other = "[package]\npublish = false\n[dependencies]\nclap = \"4\"\n";
        let files = Files(vec![
            ("Cargo.toml".into(), manifest.to_owned()),
            ("docs/dependencies.md".into(), page.to_owned()),
            ("load/Cargo.toml".into(), other.to_owned()),
        ]);
        let expected = [
            "docs/dependencies.md: has no line for rustix",
            "docs/dependencies.md: has no line for slab",
            "docs/dependencies.md: rand is not used",
            "docs/dependencies.md: no advisories of rustix",
            "docs/dependencies.md: advisories of log, which is not used",
        ];
        assert_eq!(dependencies_are_explained(&files), expected);
    }

    #[test]
    fn dialect_is_found_across_lines() {
        let text = "    /// The stage goes\n    /// on. It lets\n    /// go of it.\n    fn goes() {}\n    fn on() {}\n";
        let files = Files(vec![("src/lib.rs".into(), text.to_owned())]);
        let expected = ["src/lib.rs:2: says \"goes on\"", "src/lib.rs:3: says \"lets go\""];
        assert_eq!(texts_are_plain_english(&files), expected);
    }

    #[test]
    fn a_doc_comment_that_begins_without_its_item_is_found() {
        let text = "//! It is a file.\n\n/// A thing.\n/// It is small.\n/// Who knows.\nstruct Thing {\n    \
                    /// Who has it.\n    of: u8,\n    /// Italics.\n    in: u8,\n}\n// It is a comment.\n";
        assert_eq!(nameless_docs(text).collect::<Vec<_>>(), [1, 7]);
    }

    #[test]
    fn an_unescaped_field_is_distinguished_from_a_remainder() {
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
    fn only_items_for_tests_are_skipped() {
        let text = "use a;\n#[cfg(test)]\nmod tests;\nfn b() {}\n#[cfg(test)]\nimpl C {\n    \
                    fn d() {}\n}\nfn e() {\n}\n#[cfg(all(test, unix))]\n#[expect(f)]\nmod tests {\n\
                        \x20   fn g() {}\n}\nfn h() {}";
        let lines: Vec<_> = lines_of_code(text).collect();
        let expected =
            [(1, "use a;"), (4, "fn b() {}"), (9, "fn e() {"), (10, "}"), (16, "fn h() {}")];
        assert_eq!(lines, expected);
    }
}
