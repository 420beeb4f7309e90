//! A frame for many sockets, some of which compress.

use std::sync::OnceLock;

use super::kind::EventKey;
use crate::protocol::frame::Frame;

/// An event's frame for many sockets: built once, and compressed once if one of them wants that.
#[derive(Clone, Debug)]
pub(crate) struct SharedFrame {
    plain: Frame,
    /// `None` inside if compressing does not make it smaller.
    deflated: OnceLock<Option<Frame>>,
    key: EventKey,
}

impl SharedFrame {
    pub(crate) fn new(plain: Frame, key: EventKey) -> Self {
        Self { plain, deflated: OnceLock::new(), key }
    }

    /// The frame for a socket that compresses, or that does not.
    pub(crate) fn get(&self, compressed: bool) -> &Frame {
        if !compressed {
            return &self.plain;
        }
        self.deflated.get_or_init(|| self.plain.deflated()).as_ref().unwrap_or(&self.plain)
    }

    /// What it is the latest of.
    pub(crate) fn key(&self) -> EventKey {
        self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_compressed_once_for_all_who_want_that() {
        let write = |out: &mut Vec<u8>| {
            out.extend([b'x'; 1000]);
            Ok::<_, ()>(())
        };
        let shared = SharedFrame::new(Frame::text(write).unwrap(), EventKey::new("t", "e"));
        let pointer = |compressed| shared.get(compressed).bytes().as_ptr();
        assert_eq!(pointer(true), pointer(true));
        assert_eq!(pointer(false), pointer(false));
        assert!(shared.get(true).len() < 100);
        assert_eq!(shared.get(false).len(), 1004);
    }
}
