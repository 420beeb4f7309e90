//! Thin entrances to private code, for the fuzz targets of this project.
//!
//! Not a part of the public API: anything here changes or disappears without notice.

use std::{fmt, sync::Arc};

use crate::{BuildError, FlushReport, StatsdBuilder, StatsdRecorder, exporter::Exporter};

/// The flushes of a recorder that has no thread of its own.
pub struct Flushes(Arc<Exporter>);

impl Flushes {
    /// Flushes now.
    #[must_use]
    pub fn flush(&self) -> FlushReport {
        self.0.flush()
    }
}

impl fmt::Debug for Flushes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flushes")
    }
}

/// A recorder without a thread.
///
/// # Errors
///
/// As [`StatsdBuilder::build`].
pub fn without_thread(builder: StatsdBuilder) -> Result<(StatsdRecorder, Flushes), BuildError> {
    let (recorder, exporter) = builder.without_thread()?;
    Ok((recorder, Flushes(exporter)))
}
