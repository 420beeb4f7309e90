//! Each file of `cases` has a mistake in it, and beside it stands what the compiler says of it.
//!
//! Its words differ from one version of the compiler to the next. They are compared only with the
//! version they were recorded with. Any other has to refuse the same programs, and no more.

use std::{env, error::Error, fs, path::Path, process::Command};

use trybuild::TestCases;

/// The compiler whose words were recorded.
const RECORDED_WITH: &str = "rustc 1.95.0 ";

const CASES: &str = "cases";

/// Where the cases of a run that compares nothing are.
const COPIES: &str = "PIPELINE_MESSAGES";

#[test]
fn what_does_not_fit_does_not_compile_and_the_compiler_says_why() -> Result<(), Box<dyn Error>> {
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
    let copies = Path::new(env!("CARGO_TARGET_TMPDIR")).join("messages");
    copy_cases(&copies)?;
    // To itself it writes down what is said, and still fails if there is nothing to say.
    let refused = Command::new(env::current_exe()?)
        .env(COPIES, &copies)
        .env("TRYBUILD", "overwrite")
        .status()?;
    assert!(refused.success(), "something compiles that should not, see above");
    Ok(())
}

/// Copies the programs, without the messages.
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
