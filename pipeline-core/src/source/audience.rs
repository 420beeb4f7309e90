//! The number of a source's consumers. Pure.

use crate::exit::ExitReason;

/// The number of a source's consumers, and whether the source ends without any.
#[derive(Debug, Default)]
pub(super) struct Audience {
    consumers: usize,
    needed: bool,
}

impl Audience {
    /// Makes the source end when its last consumer leaves.
    pub(super) fn needed(&mut self) {
        self.needed = true;
    }

    pub(super) fn joined(&mut self) {
        self.consumers += 1;
    }

    pub(super) fn left(&mut self) -> Result<(), ExitReason> {
        self.consumers -= 1;
        if self.needed && self.consumers == 0 { Err(ExitReason::Normal) } else { Ok(()) }
    }
}
