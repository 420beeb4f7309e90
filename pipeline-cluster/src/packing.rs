//! Frames of one channel that are sent in one message. Pure.
//!
//! A message costs the server, and each client of it, about as much as ten frames within one. So what is
//! sent at once is packed by channel: the frames of a channel keep their order.

use std::collections::{HashMap, hash_map::Entry};

use bytes::Bytes;

use crate::{
    channels::{BuildChannelHasher, Channel},
    frame::{GROUP, append_to_group},
    queue::Outgoing,
};

/// The longest group, in bytes. The payload of a frame keeps the memory of its group alive, so a group is
/// short. A single frame may be longer.
const LONGEST_GROUP: usize = 16 << 10;

/// A message to the server: a frame, or a group of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) channel: Channel,
    pub(crate) bytes: Bytes,
    /// How many frames are in it.
    pub(crate) frames: usize,
    /// They are parts of clients' requests.
    pub(crate) is_request: bool,
    /// How often it was sent alone and not answered in time.
    pub(crate) tries: u32,
}

/// A message that may get more frames.
enum Open {
    One(Bytes),
    Several(Vec<u8>),
}

/// Packs frames into messages, in the order of the first frame of each.
pub(crate) fn pack(frames: Vec<Outgoing>, max_message: usize) -> Vec<Message> {
    let longest = LONGEST_GROUP.min(max_message);
    let mut messages: Vec<(Channel, Open, usize, bool)> = Vec::with_capacity(frames.len());
    let mut last: HashMap<Channel, usize, BuildChannelHasher> =
        HashMap::with_capacity_and_hasher(frames.len(), BuildChannelHasher::default());
    for Outgoing { channel, frame, is_request } in frames {
        let next = messages.len();
        match last.entry(channel) {
            Entry::Occupied(mut at) => {
                // A request is never sent a second time, and so in a message apart.
                if let Some((_, open, frames, kind)) = messages.get_mut(*at.get())
                    && *kind == is_request
                    && open.add(&frame, longest)
                {
                    *frames += 1;
                    continue;
                }
                at.insert(next);
            }
            Entry::Vacant(at) => drop(at.insert(next)),
        }
        messages.push((channel, Open::One(frame), 1, is_request));
    }
    let closed = messages.into_iter().map(|(channel, open, frames, is_request)| {
        let bytes = match open {
            Open::One(frame) => frame,
            Open::Several(group) => group.into(),
        };
        Message { channel, bytes, frames, is_request, tries: 0 }
    });
    closed.collect()
}

impl Open {
    /// Adds a frame, if the group does not become too long.
    fn add(&mut self, frame: &[u8], longest: usize) -> bool {
        // Each frame has its length before it.
        let with = |length: usize| length + 4 + frame.len();
        match self {
            Self::One(first) => {
                if with(1 + 4 + first.len()) > longest {
                    return false;
                }
                let mut group = Vec::with_capacity(with(1 + 4 + first.len()));
                group.push(GROUP);
                append_to_group(&mut group, first);
                append_to_group(&mut group, frame);
                *self = Self::Several(group);
            }
            Self::Several(group) => {
                if with(group.len()) > longest {
                    return false;
                }
                append_to_group(group, frame);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::frames;

    /// What is in the messages, in order.
    fn unpacked(messages: &[Message]) -> Vec<(Channel, Bytes)> {
        let of = |message: &Message| {
            let frames: Vec<_> = frames(&message.bytes).map(|frame| frame.unwrap()).collect();
            assert_eq!(frames.len(), message.frames);
            frames.into_iter().map(|frame| (message.channel, frame)).collect::<Vec<_>>()
        };
        messages.iter().flat_map(of).collect()
    }

    fn frame(channel: u32, length: usize, fill: u8) -> Outgoing {
        // The first byte is that of a frame.
        let frame = [vec![crate::frame::VERSION], vec![fill; length]].concat();
        Outgoing { channel: Channel::Topic(channel), frame: frame.into(), is_request: false }
    }

    #[test]
    fn frames_of_one_channel_are_one_message_up_to_a_length() {
        let frames: Vec<_> = (0..=255).map(|n| frame(1, 199, n)).collect();
        let messages = pack(frames.clone(), 1 << 20);
        assert_eq!(messages.iter().map(|it| it.frames).collect::<Vec<_>>(), [80, 80, 80, 16]);
        assert!(messages.iter().all(|it| it.bytes.len() <= LONGEST_GROUP));
        let few = pack(frames, 500);
        assert!(few.iter().all(|it| it.frames == 2 && it.bytes.len() <= 500));
    }

    #[test]
    fn requests_are_in_messages_apart() {
        let request = |fill| Outgoing { is_request: true, ..frame(1, 9, fill) };
        let messages = pack(vec![request(1), request(2), frame(1, 9, 3), frame(1, 9, 4)], 1 << 20);
        let kinds: Vec<_> = messages.iter().map(|it| (it.frames, it.is_request)).collect();
        assert_eq!(kinds, [(2, true), (2, false)]);
    }

    #[test]
    fn a_single_frame_is_sent_as_it_is() {
        let long = frame(1, 100_000, 7);
        let messages = pack(vec![frame(2, 9, 1), long.clone(), frame(1, 9, 2)], 1 << 20);
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[1].bytes, long.frame);
        assert_eq!(messages[1].bytes.as_ptr(), long.frame.as_ptr(), "it is not copied");
    }

    proptest! {
        /// Every frame is in one message of its channel, and those of a channel keep their order.
        #[test]
        fn nothing_is_lost_and_channels_keep_their_order(
            sizes in prop::collection::vec((0..4u32, 0..9_000usize), 0..100),
            max in 100..40_000usize,
        ) {
            let fill = |n: usize| u8::try_from(n).unwrap();
            let all: Vec<_> = sizes.iter().enumerate()
                .map(|(n, (channel, length))| frame(*channel, *length, fill(n)))
                .collect();
            let unpacked = unpacked(&pack(all.clone(), max));
            prop_assert_eq!(unpacked.len(), all.len());
            for channel in 0..4 {
                let channel = Channel::Topic(channel);
                let sent: Vec<_> =
                    all.iter().filter(|it| it.channel == channel).map(|it| &it.frame).collect();
                let arrived: Vec<_> =
                    unpacked.iter().filter(|it| it.0 == channel).map(|it| &it.1).collect();
                prop_assert_eq!(sent, arrived);
            }
        }
    }
}
