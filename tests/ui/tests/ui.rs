//! Each file of `cases` has an error, and a file with the compiler's message next to it.
//!
//! Messages differ between versions of the compiler. They are compared only with the version that they
//! were recorded with. Any other version has to reject the same programs, and no others.

use std::{env, error::Error, fs, path::Path, process::Command};

use trybuild::TestCases;

/// The version of the recorded messages.
const RECORDED_WITH: &str = "rustc 1.95.0 ";

const CASES: &str = "cases";

/// The folder of the cases when messages are not compared.
const COPIES: &str = "PIPELINE_UI_CASES";

#[test]
fn invalid_pipelines_do_not_compile_and_the_compiler_says_why() -> Result<(), Box<dyn Error>> {
    if let Ok(copies) = env::var(COPIES) {
        TestCases::new().compile_fail(format!("{copies}/*.rs"));
        return Ok(());
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output()?.stdout;
    let version = String::from_utf8(version)?;
    if version.starts_with(RECORDED_WITH) {
        TestCases::new().compile_fail(format!("{CASES}/*.rs"));
        return Ok(());
    }
    println!("messages are compared only with {RECORDED_WITH}, and this is {version}");
    let copies = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cases");
    copy_cases(&copies)?;
    // trybuild then writes the messages into the copy, and still fails if a case compiles.
    let refused = Command::new(env::current_exe()?)
        .env(COPIES, &copies)
        .env("TRYBUILD", "overwrite")
        .status()?;
    assert!(refused.success(), "a case compiles that should not, see above");
    Ok(())
}

/// Copies the programs without the messages.
fn copy_cases(to: &Path) -> Result<(), Box<dyn Error>> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for case in fs::read_dir(CASES)? {
        let case = case?.path();
        if case.extension().is_some_and(|extension| extension == "rs") {
            fs::copy(&case, to.join(case.file_name().expect("it is a file")))?;
        }
    }
    Ok(())
}
