//! A frame for many sockets, some of them with compression.

use std::sync::{Arc, OnceLock};

use pipeline_core::timed::Timeline;

use super::{
    backlog::Outgoing,
    outcome::CountedPush,
    when_full::{EventKey, FrameKind},
};
use crate::protocol::frame::Frame;

/// An event's frame for many sockets: built once, and compressed at most once.
#[derive(Clone, Debug)]
pub(crate) struct SharedFrame {
    plain: Arc<Outgoing>,
    /// `None` inside if compression does not make it smaller.
    deflated: OnceLock<Option<Arc<Outgoing>>>,
}

impl SharedFrame {
    pub(crate) fn new(plain: Frame, key: EventKey) -> Self {
        let plain = Outgoing::shared(plain, FrameKind::Event(key));
        Self { plain: Arc::new(plain), deflated: OnceLock::new() }
    }

    /// Sets the times of its push so far, if it is timed.
    pub(crate) fn timed(mut self, timeline: Option<Timeline>) -> Self {
        Arc::make_mut(&mut self.plain).timeline = timeline;
        Self { plain: self.plain, deflated: OnceLock::new() }
    }

    /// Sets the push that counts its copies, if the outcome is wanted.
    pub(crate) fn counted(mut self, push: Option<Arc<CountedPush>>) -> Self {
        Arc::make_mut(&mut self.plain).counted = push;
        Self { plain: self.plain, deflated: OnceLock::new() }
    }

    /// The push that counts its copies, if the outcome is wanted.
    pub(crate) fn push(&self) -> Option<&Arc<CountedPush>> {
        self.plain.counted.as_ref()
    }

    /// The frame for a socket with or without compression.
    pub(crate) fn get(&self, compressed: bool) -> &Arc<Outgoing> {
        if !compressed {
            return &self.plain;
        }
        let deflate = || {
            let frame = self.plain.frame.deflated()?;
            let mut deflated = Outgoing::shared(frame, self.plain.kind);
            deflated.timeline = self.plain.timeline;
            deflated.counted = self.plain.counted.clone();
            Some(Arc::new(deflated))
        };
        self.deflated.get_or_init(deflate).as_ref().unwrap_or(&self.plain)
    }

    /// The times of its push so far, if it is timed.
    pub(crate) fn timeline(&self) -> Option<&Timeline> {
        self.plain.timeline.as_ref()
    }

    /// The uncompressed frame.
    pub(crate) fn frame(&self) -> &Frame {
        &self.plain.frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_compressed_once_for_all_sockets_with_compression() {
        let write = |out: &mut Vec<u8>| {
            out.extend([b'x'; 1000]);
            Ok::<_, ()>(())
        };
        let shared = SharedFrame::new(Frame::text(write).unwrap(), EventKey::new("t", "e"));
        let pointer = |compressed| shared.get(compressed).bytes().as_ptr();
        assert_eq!(pointer(true), pointer(true));
        assert_eq!(pointer(false), pointer(false));
        assert!(shared.get(true).bytes().len() < 100);
        assert_eq!(shared.get(false).bytes().len(), 1004);
    }
}
