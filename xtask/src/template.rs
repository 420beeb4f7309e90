//! Checks the template, copied as a user would copy it.

use std::{env, fs, io, path::Path, process::Command};

use crate::{
    load,
    run::{Failure, Outcome, cargo, root, step},
};

/// The project's own settings. With others, nothing that was built of other packages would be shared.
const PROFILE: [&str; 4] = [
    "--config",
    "profile.dev.debug='line-tables-only'",
    "--config",
    "profile.dev.package.'*'.debug=false",
];

/// The template builds outside of the project, passes its checks and its tests, and starts.
pub(crate) fn works() -> Outcome {
    let app = env::temp_dir().join(format!("pipeline-template-{}", std::process::id()));
    let works = copy_to(&app).and_then(|()| works_in(&app));
    fs::remove_dir_all(&app)?;
    works
}

/// Copies the template. The copy depends on this checkout, and on the versions that are there without a network.
fn copy_to(app: &Path) -> Outcome {
    copy(&root().join("template"), app)?;
    let manifest = app.join("Cargo.toml");
    let checkout = format!("path = {:?}", root());
    let text = fs::read_to_string(&manifest)?;
    if !text.contains("path = \"..\"") {
        return Err(Failure::new("template/Cargo.toml: does not depend on the folder above"));
    }
    fs::write(manifest, text.replace("path = \"..\"", &checkout))?;
    fs::copy(root().join("Cargo.lock"), app.join("Cargo.lock"))?;
    Ok(())
}

/// Copies a folder, without what was built in it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let copied = to.join(path.file_name().unwrap_or_default());
        if !path.is_dir() {
            fs::copy(&path, &copied)?;
        } else if !path.ends_with("target") {
            copy(&path, &copied)?;
        }
    }
    Ok(())
}

fn works_in(app: &Path) -> Outcome {
    let cargo = |command: &str| {
        let mut cargo = cargo();
        cargo.current_dir(app).arg(command).env("CARGO_TARGET_DIR", load::target_folder());
        cargo
    };
    step("the template's format", cargo("fmt").arg("--check"))?;
    let build = |command: &mut Command| {
        command.args(["--offline", "--quiet"]).args(PROFILE);
    };
    let mut tests = cargo("test");
    build(&mut tests);
    step("the template's tests", &mut tests)?;

    // It says what is missing, and needs nothing else to start.
    let mut run = cargo("run");
    build(&mut run);
    let refused = run.env_remove("SECRET").output()?;
    let log = String::from_utf8_lossy(&refused.stderr);
    if refused.status.success() || !log.contains("SECRET is missing") {
        return Err(Failure::new(format!("the template without a secret: {log}")));
    }
    Ok(())
}
