//! The signals that ask a process to stop.

use std::{future::Future, io};

#[cfg(unix)]
use tokio::signal::unix;

/// Completes when the process receives a signal to stop: Ctrl-C, SIGTERM, or SIGHUP, which is sent when
/// the terminal is closed.
///
/// Signals are caught from the call on, before the future is awaited. From then on they no longer end
/// the process by themselves. SIGHUP stays ignored if the process was started with it ignored, as by
/// `nohup`; this is detected on Linux and Android only.
///
/// # Errors
///
/// If the signal handlers cannot be installed.
///
/// ```no_run
/// # async fn run() -> std::io::Result<()> {
/// pipeline::shutdown_signal()?.await;
/// println!("stopping");
/// # Ok(())
/// # }
/// ```
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send> {
    let mut signals = Signals::listen()?;
    Ok(async move {
        signals.stop().await;
    })
}

/// The signal handlers. Signals are caught from their creation on.
pub(crate) struct Signals {
    #[cfg(unix)]
    interrupt: unix::Signal,
    #[cfg(unix)]
    terminate: unix::Signal,
    #[cfg(unix)]
    hangup: Option<unix::Signal>,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
}

/// The signal that asked the process to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// Ctrl-C or SIGTERM.
    Requested,
    /// SIGHUP. A second one means little: a terminal sends it more than once when it is closed, and a
    /// service manager may send it along with SIGTERM.
    #[cfg_attr(windows, expect(dead_code, reason = "there is no such signal"))]
    HangUp,
}

impl Signals {
    #[cfg(unix)]
    pub(crate) fn listen() -> io::Result<Self> {
        let hangup = !ignores_hangup();
        Ok(Self {
            interrupt: unix::signal(unix::SignalKind::interrupt())?,
            terminate: unix::signal(unix::SignalKind::terminate())?,
            hangup: hangup.then(|| unix::signal(unix::SignalKind::hangup())).transpose()?,
        })
    }

    #[cfg(windows)]
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: tokio::signal::windows::ctrl_c()? })
    }

    /// Waits for the next stop signal.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    #[cfg(unix)]
    pub(crate) async fn stop(&mut self) -> StopSignal {
        let Self { interrupt, terminate, hangup } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => StopSignal::Requested,
            _ = terminate.recv() => StopSignal::Requested,
            _ = hangup => StopSignal::HangUp,
        }
    }

    #[cfg(windows)]
    pub(crate) async fn stop(&mut self) -> StopSignal {
        let _ = self.interrupt.recv().await;
        StopSignal::Requested
    }
}

/// Whether the process was started with SIGHUP ignored. Installing a handler would end that.
#[cfg(any(target_os = "android", target_os = "linux"))]
fn ignores_hangup() -> bool {
    // If the file cannot be read, the answer is no.
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_ignored_hangup(&status))
}

#[cfg(all(unix, not(any(target_os = "android", target_os = "linux"))))]
fn ignores_hangup() -> bool {
    false
}

/// Whether the `SigIgn` mask in a process's status contains SIGHUP, which is signal 1.
#[cfg(any(target_os = "android", target_os = "linux"))]
fn has_ignored_hangup(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(all(test, any(target_os = "android", target_os = "linux")))]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_sighup_is_read_from_the_process_status() {
        let status = |mask: &str| format!("Name:\ta\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(has_ignored_hangup(&status("0000000000001001")));
        assert!(!has_ignored_hangup(&status("0000000000001000")));
        assert!(!has_ignored_hangup(&status("")));
        assert!(!has_ignored_hangup(""));
    }
}
