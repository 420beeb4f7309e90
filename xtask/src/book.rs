//! Builds the guide, and checks that the links of its pages lead somewhere.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::{
    load::target_folder,
    run::{Failure, Outcome, program, root, step},
    setup,
};

/// Files of docs/ to which pages of the reference link.
const BESIDES: [&str; 9] = [
    "deploy/haproxy.cfg",
    "deploy/kubernetes.yaml",
    "deploy/nginx.conf",
    "grafana/dashboard.json",
    "grafana/statsd-mapping.yml",
    "growth.svg",
    "overload.svg",
    "prometheus/alerts.yml",
    "prometheus/alerts_test.yml",
];

/// The folder of the pages that show documents of docs/. Some of their links lead to source files, which are not
/// in the book.
const REFERENCE: &str = "reference";

pub(crate) fn build() -> Outcome {
    let built = target_folder().join("book");
    let mut mdbook = program(setup::mdbook());
    step("the guide", mdbook.args(["build", "docs/book", "--dest-dir"]).arg(&built))?;
    for name in BESIDES {
        let copy = built.join(REFERENCE).join(name);
        fs::create_dir_all(copy.parent().expect("it is in a folder"))?;
        fs::copy(root().join("docs").join(name), copy)?;
    }
    let mut pages = Vec::new();
    collect(&built, &built, &mut pages)?;
    let faults = faults(&pages, |path| built.join(path).is_file() || is_document(path));
    if faults.is_empty() { Ok(()) } else { Err(Failure::new(faults.join("\n"))) }
}

/// Whether a page of the reference links to a document that is not in the book. Tidy checks those links.
fn is_document(path: &Path) -> bool {
    let document = path.strip_prefix(REFERENCE).map(|path| root().join("docs").join(path));
    document.is_ok_and(|document| document.exists() || document.with_extension("md").exists())
}

/// The pages, by their path in the book. Those that mdBook adds have links to nothing but pages.
fn collect(built: &Path, folder: &Path, pages: &mut Vec<(PathBuf, String)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            collect(built, &path, pages)?;
        } else if name.ends_with(".html")
            && !["print.html", "404.html", "toc.html"].contains(&&*name)
        {
            let text = fs::read_to_string(&path)?;
            pages.push((path.strip_prefix(built).unwrap_or(&path).to_owned(), text));
        }
    }
    Ok(())
}

/// Links that lead nowhere, and parts that were not included.
fn faults(pages: &[(PathBuf, String)], is_there: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in pages {
        if text.contains("{{#include") {
            faults.push(format!("{}: a part could not be included", path.display()));
        }
        for link in links(text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let leaves_the_book = path.starts_with(REFERENCE) && file.starts_with("../");
            if leaves_the_book || link.contains(':') {
                continue;
            }
            let target = match file {
                "" => path.clone(),
                file => resolved(path, file),
            };
            let page = pages.iter().find(|(page, _)| *page == target).map(|(_, text)| text);
            let leads_somewhere = match page {
                Some(page) => anchor.is_empty() || page.contains(&format!("id=\"{anchor}\"")),
                None => is_there(&target),
            };
            if !leads_somewhere {
                faults.push(format!("{}: {link} leads nowhere", path.display()));
            }
        }
    }
    faults
}

/// The values of all `href` and `src`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let values =
        |attribute| text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next());
    values(" href=\"").chain(values(" src=\""))
}

/// The path of a link on a page.
fn resolved(page: &Path, link: &str) -> PathBuf {
    let mut path = page.to_owned();
    path.pop();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => _ = path.pop(),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::faults;

    fn page(path: &str, text: &str) -> (PathBuf, String) {
        (path.into(), text.to_owned())
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let pages = [
            page("first.html", r##"<a href="demand.html#size">, <a href="#own">, <h1 id="own">"##),
            page("demand.html", r#"<a href="first.html#gone">, <img src="demand.svg">"#),
            page(
                "sizing.html",
                r#"<a href="gone.html">, <a href="https://example.com/gone.html">"#,
            ),
            page("reference/a.html", r#"<a href="../pipeline-core">, <a href="spec/gone.html">"#),
            page("reference/spec/b.html", "{{#include ../gone.md}}"),
        ];
        let found = faults(&pages, |path| path == Path::new("demand.svg"));
        let expected = [
            "first.html: demand.html#size leads nowhere",
            "demand.html: first.html#gone leads nowhere",
            "sizing.html: gone.html leads nowhere",
            "reference/a.html: spec/gone.html leads nowhere",
            "reference/spec/b.html: a part could not be included",
        ];
        assert_eq!(found, expected);
    }
}
