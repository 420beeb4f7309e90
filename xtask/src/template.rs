//! Checks the template, copied as a user would copy it.
#![expect(clippy::disallowed_methods, reason = "there is no tokio here")]

use std::{
    env, fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

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

/// The template builds outside of the project, passes its checks, lints and tests, starts, and ends.
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
    let mut lints = cargo("clippy");
    build(&mut lints);
    step("the template's lints", lints.args(["--all-targets", "--", "--deny", "warnings"]))?;
    starts_and_ends(&load::target_folder().join("debug/my-app"))
}

/// With a secret it becomes ready, and ends without an error at SIGTERM.
fn starts_and_ends(program: &Path) -> Outcome {
    let [outside, inside] = [free_address()?, free_address()?];
    let mut app = Command::new(program);
    app.env("SECRET", "a secret of the test, 20 bytes").env("LISTEN", outside);
    app.env("LISTEN_INSIDE", &inside).env("RUST_LOG", "warn");
    let mut app = app.stdout(Stdio::piped()).spawn()?;
    let ready = until_ready(&inside);
    let asked = Command::new("kill").args(["-TERM", &app.id().to_string()]).status()?;
    if ready.is_err() || !asked.success() {
        app.kill()?;
    }
    // It serves on for a few seconds, and has a deadline of its own.
    let ended = app.wait_with_output()?;
    ready?;
    let said = String::from_utf8_lossy(&ended.stdout);
    if !ended.status.success() || said.is_empty() {
        return Err(Failure::new(format!("the template at SIGTERM: {}, {said}", ended.status)));
    }
    println!("the template was ready, and ended at SIGTERM: {}", said.trim());
    Ok(())
}

/// An address that was free a moment ago.
fn free_address() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Asks for the health until the answer is that it is ready.
fn until_ready(address: &str) -> Outcome {
    let mut last = String::new();
    for _ in 0..600 {
        match health(address) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(answer) => last = answer,
            Err(error) => last = error.to_string(),
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(Failure::new(format!("the template is not ready after a minute: {last}")))
}

fn health(address: &str) -> io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}
