//! A wall clock of an example, which a test sets while the example runs.

use std::{
    env, fs,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::process::Command;

use crate::project;

/// The wall clock of an example. Its monotonic clock is the system's.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    /// The file that contains the difference to the system's clock.
    file: PathBuf,
}

impl WallClock {
    /// A clock that is right so far. None if there is no libfaketime.
    ///
    /// # Panics
    ///
    /// If it is missing and `CI` is set.
    #[must_use]
    pub fn new() -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(library) = library() else {
            assert!(
                env::var_os("CI").is_none(),
                "libfaketime is missing, and CI is set: `cargo xtask setup` unpacks it"
            );
            println!("SKIPPED: no libfaketime; on Debian `cargo xtask setup` unpacks it");
            return None;
        };
        let name = format!("wall-clock-{}-{}", process::id(), COUNT.fetch_add(1, Relaxed));
        let clock = Self { library, file: env::temp_dir().join(name) };
        clock.set(0);
        Some(clock)
    }

    /// Sets the clock to so many seconds after the system's, or before it.
    pub fn set(&self, seconds: i64) {
        // Replaced as a whole: the example may be reading it.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// Gives the clock to a program that is about to start.
    pub(crate) fn give_to(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The path of libfaketime, which `cargo xtask setup` unpacks.
fn library() -> Option<PathBuf> {
    let folders = ["/".into(), project().join("target/tools/faketime")];
    let folders = folders.iter().flat_map(|root: &PathBuf| fs::read_dir(root.join("usr/lib")));
    let folders = folders.flatten().flatten().map(|folder| folder.path());
    let mut libraries = folders.map(|folder| folder.join("faketime/libfaketime.so.1"));
    libraries.find(|library| library.is_file())
}
