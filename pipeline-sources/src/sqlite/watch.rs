//! Whether the open file of a queue is still the one at its path.

use std::{
    fs, io,
    path::{Path, PathBuf, absolute},
};

use rusqlite::Connection;

use super::SqliteError;

/// A path, and which file was there when it was opened.
///
/// What is written to a file that is at no path is lost when it is closed, and SQLite does not notice that.
#[derive(Clone, Debug)]
pub(super) struct Watch(Option<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    /// The path as it was given. It may lead through links, which are changed.
    given: PathBuf,
    /// The path of the file without links, next to which SQLite has its log.
    file: PathBuf,
    opened: Identity,
}

/// What tells a file from all others that there are at the same time: its device, and its number there.
type Identity = (u64, u64);

/// Which file was at a path before it was opened, if any.
#[derive(Debug)]
pub(super) struct Before(Option<Identity>);

impl Before {
    /// The file that is at the path now.
    pub(super) fn at(path: &Path) -> Self {
        Self(identity(path).ok().flatten())
    }
}

impl Watch {
    /// Watches the file of a connection that was just opened. A database without a file is not watched, and
    /// no file is on a system that does not tell its files apart.
    ///
    /// # Errors
    ///
    /// [`SqliteError::Replaced`] if another file was at the path before: which of them is open is not known.
    pub(super) fn of(
        connection: &Connection,
        path: &Path,
        before: &Before,
    ) -> Result<Self, SqliteError> {
        let file = match connection.path() {
            Some("") => None,
            Some(name) => Some(PathBuf::from(name)),
            // One that is no text, or none.
            None => fs::canonicalize(path).ok(),
        };
        let Some(file) = file else { return Ok(Self(None)) };
        let given = absolute(path).ok().filter(|path| identity(path).is_ok());
        let given = given.unwrap_or_else(|| file.clone());
        let Some(opened) = identity(&given).ok().flatten() else { return Ok(Self(None)) };
        let opened = before.0.unwrap_or(opened);
        let watch = Self(Some(Watched { given, file, opened }));
        watch.check()?;
        Ok(watch)
    }

    /// Fails if the file at the path is another one now, or if there is none. A file that was moved back is
    /// the same again.
    pub(super) fn check(&self) -> Result<(), SqliteError> {
        let Some(Watched { given, file, opened }) = &self.0 else { return Ok(()) };
        if is_there(identity(given), *opened) {
            return Ok(());
        }
        // Where the path leads elsewhere now, the log belongs to the file still.
        let is_elsewhere = given != file && is_there(identity(file), *opened);
        let log_of = (!is_elsewhere).then(|| file.clone());
        Err(SqliteError::Replaced { path: given.clone(), log_of })
    }
}

/// Whether what was found is the file that was opened. What cannot be looked at is not known to be gone.
fn is_there(found: io::Result<Option<Identity>>, opened: Identity) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, StaleNetworkFileHandle};

    match found {
        Ok(found) => found == Some(opened),
        Err(error) => !matches!(error.kind(), NotFound | NotADirectory | StaleNetworkFileHandle),
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    use std::os::unix::fs::MetadataExt;

    let found = fs::metadata(path)?;
    Ok(Some((found.dev(), found.ino())))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    fs::metadata(path).map(|_| None)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_while_it_is_opened_is_not_taken_for_the_open_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("queue.db"), folder.path().join("other.db"));
        fs::write(&path, "").unwrap();
        fs::write(&other, "").unwrap();
        let before = Before::at(&path);
        let connection = Connection::open(&path).unwrap();
        assert!(Watch::of(&connection, &path, &before).is_ok());
        fs::rename(&other, &path).unwrap();
        let error = Watch::of(&connection, &path, &before).unwrap_err();
        assert!(matches!(error, SqliteError::Replaced { .. }), "{error}");
    }

    #[test]
    fn a_file_that_another_host_has_removed_is_gone_and_one_that_cannot_be_looked_at_is_not() {
        use io::ErrorKind::{NotFound, PermissionDenied, StaleNetworkFileHandle, TimedOut};

        let found = |kind: io::ErrorKind| is_there(Err(kind.into()), (1, 2));
        assert!(!found(StaleNetworkFileHandle) && !found(NotFound));
        assert!(found(PermissionDenied) && found(TimedOut));
    }

    #[test]
    fn a_database_without_a_file_is_not_watched() {
        for path in ["", ":memory:"] {
            let connection = Connection::open(path).unwrap();
            let path = Path::new(path);
            let watch = Watch::of(&connection, path, &Before::at(path)).unwrap();
            assert!(watch.0.is_none() && watch.check().is_ok());
        }
    }
}
