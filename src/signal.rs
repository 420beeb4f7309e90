//! The signals that tell a process to stop.

use std::{future::Future, io};

/// Completes when the process is told to stop: by Ctrl-C, by SIGTERM, or by SIGHUP, which comes when its
/// terminal is closed.
///
/// Signals count from the call on, before the future is awaited. From then on they no longer end
/// the process by themselves.
///
/// # Errors
///
/// If the signals cannot be listened for.
///
/// ```no_run
/// # async fn run() -> std::io::Result<()> {
/// pipeline::shutdown_signal()?.await;
/// println!("stopping");
/// # Ok(())
/// # }
/// ```
#[cfg(unix)]
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Completes when the process is told to stop: by Ctrl-C.
///
/// # Errors
///
/// If the signal cannot be listened for.
#[cfg(windows)]
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        let _ = interrupt.recv().await;
    })
}
