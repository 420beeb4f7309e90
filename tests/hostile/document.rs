//! The table of `docs/spec/hostile.md`.

use std::{env, fs};

use pipeline_test_support::project;

use crate::{
    case::Group, cut, deflate, frames, messages, polls, requests, storms::Storm, sustained, tokens,
};

/// All groups, in the order of the document.
fn groups() -> Vec<Group> {
    vec![
        frames::group(),
        deflate::group(),
        messages::group(),
        requests::group(),
        cut::group(),
        tokens::group(),
        polls::group(),
    ]
}

/// The lines of the tables.
fn tables() -> String {
    let mut text = String::new();
    for Group { title, bounded, cases } in groups() {
        text += &format!("\n## {title}\n\nBounded: {bounded}\n\n");
        text += "| case | the client sends | the server answers |\n| --- | --- | --- |\n";
        for case in cases {
            text += &format!("| {} | {} | {} |\n", case.id, case.what, case.expect);
        }
    }
    text += "\n## Sustained attacks\n\nBounded: for each attack, the bytes in the server's bounded \
             buffers, and the memory by which its process grows.\n\n\
             | case | two clients each send, without a pause | class | in each measurement, at \
             least | in buffers, at most | memory, at most |\n\
             | --- | --- | --- | --- | --- | --- |\n";
    for storm in sustained::all() {
        let Storm { id, what, limit, attack, holds, .. } = &storm;
        let kib = |bytes: usize| bytes.div_ceil(1 << 10);
        let (holds, memory) = (kib(*holds), kib(storm.memory()));
        text += &format!(
            "| {id} | {what} | {} | {} {} | {holds} KiB | {memory} KiB |\n",
            limit.name, attack.least, attack.unit
        );
    }
    text
}

const BEGIN: &str = "<!-- The tables from here on are written by the test. -->\n";

/// Expects a document of `docs/spec` to have these tables. With `HOSTILE_TABLE` set, writes them anew.
pub(crate) fn has_tables(name: &str, tables: &str) {
    let path = project().join("docs/spec").join(name);
    let document = fs::read_to_string(&path).unwrap();
    let (head, written) = document.split_once(BEGIN).unwrap();
    if env::var_os("HOSTILE_TABLE").is_some() {
        fs::write(path, format!("{head}{BEGIN}{tables}")).unwrap();
        return;
    }
    for (document, test) in written.lines().zip(tables.lines()) {
        assert_eq!(document, test, "run the test with HOSTILE_TABLE=1 to write the tables anew");
    }
    assert_eq!(written.lines().count(), tables.lines().count());
}

#[test]
fn the_document_has_the_tables_of_the_tests() {
    has_tables("hostile.md", &tables());
}
