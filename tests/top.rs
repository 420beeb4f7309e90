//! The terminal view, as its users run it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::process::{Output, Stdio};

use pipeline_test_support::{Example, PATIENCE};
use tokio::{process::Command, time::timeout};

async fn top(url: &str) -> Output {
    let mut command = Command::new(Example::program("top").await);
    let output = command.args([url, "--once"]).output();
    timeout(PATIENCE, output).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_frame_shows_the_stages_of_a_running_program() {
    let example = Example::start(&[]).await;
    for slash in ["", "/"] {
        let url = format!("http://{}/inspect{slash}", example.address);
        // The inspector looks once a second: its first look may come before the pipeline runs.
        let text = timeout(PATIENCE, async {
            loop {
                let shown = top(&url).await;
                let text = String::from_utf8(shown.stdout).unwrap();
                assert!(shown.status.success(), "{text}");
                if !text.contains(" push starting") {
                    return text;
                }
            }
        });
        let text = text.await.unwrap();
        for part in [" push running", "queue", "push", "user:*", "last 300 s"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}

#[tokio::test]
async fn an_url_without_an_inspector_is_reported() {
    let example = Example::start(&[]).await;
    let refused = |url: String| async move {
        let shown = top(&url).await;
        assert!(!shown.status.success());
        String::from_utf8(shown.stderr).unwrap()
    };
    let said = refused(format!("http://{}/nothing", example.address)).await;
    assert!(said.contains("404") && said.contains("is an inspector mounted there?"), "{said}");
    let said = refused("http://127.0.0.1:1/inspect".to_owned()).await;
    assert!(said.contains("cannot connect: Connection refused"), "{said}");
    let said = refused("https://example.com/inspect".to_owned()).await;
    assert!(said.contains("only http://"), "{said}");
}

#[tokio::test]
async fn without_a_terminal_it_suggests_once() {
    let example = Example::start(&[]).await;
    let mut command = Command::new(Example::program("top").await);
    command.arg(format!("http://{}/inspect", example.address)).stdin(Stdio::null());
    // In a separate session the program cannot open the test's own terminal.
    let output = Command::new("setsid")
        .arg("--wait")
        .arg(command.as_std().get_program())
        .args(command.as_std().get_args())
        .stdin(Stdio::null())
        .output();
    let shown = timeout(PATIENCE, output).await.unwrap().unwrap();
    let said = String::from_utf8(shown.stderr).unwrap();
    assert!(!shown.status.success());
    assert!(said.contains("use --once") && !said.contains("panicked"), "{said}");
}
