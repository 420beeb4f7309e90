//! The buffer of a stage against a plain list of events and markers.

use pipeline_core::{dispatcher::Marker, fuzzing::EventBuffer, stage::BufferKeep};

use crate::input::Input;

pub(crate) const DICTIONARY: &[&[u8]] = &[];

/// A place in the list.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Item {
    Event(u32),
    Marker(Marker),
    /// Events before it and behind it are not offered together.
    Split,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::steps(data);
    let limit = input.below(20);
    let keep = if input.flag() { BufferKeep::First } else { BufferKeep::Last };
    let mut buffer = EventBuffer::new(limit, keep);
    let mut list: Vec<Item> = Vec::new();
    let (mut next_event, mut next_marker) = (0, 0);
    while !input.is_empty() {
        match input.below(5) {
            0 | 1 => {
                let events: Vec<u32> = (0..input.below(30)).map(|_| {
                    next_event += 1;
                    next_event
                }).collect();
                let expected = (count(&list) + events.len()).saturating_sub(limit);
                assert_eq!(buffer.store(&events), expected, "{events:?} behind {list:?}");
                for event in events {
                    if count(&list) < limit {
                        list.push(Item::Event(event));
                    } else if keep == BufferKeep::Last {
                        list.push(Item::Event(event));
                        let oldest = list.iter().position(|item| matches!(item, Item::Event(_)));
                        oldest.map(|oldest| list.remove(oldest));
                    }
                }
            }
            2 => {
                next_marker += 1;
                buffer.mark(Marker::new(next_marker));
                list.push(Item::Marker(Marker::new(next_marker)));
            }
            3 => {
                buffer.split();
                if count(&list) > 0 {
                    list.push(Item::Split);
                }
            }
            _ => take(&mut buffer, &mut list, &mut input),
        }
        due(&mut buffer, &mut list);
        assert_eq!(buffer.len(), count(&list));
        assert_eq!(buffer.has_room(), count(&list) <= limit / 2);
    }
}

fn count(list: &[Item]) -> usize {
    list.iter().filter(|item| matches!(item, Item::Event(_))).count()
}

/// All markers at the front are due.
fn due(buffer: &mut EventBuffer, list: &mut Vec<Item>) {
    while let Some(first) = list.first().copied() {
        match first {
            Item::Event(_) => break,
            Item::Split => {}
            Item::Marker(marker) => assert_eq!(buffer.due(), Some(marker)),
        }
        list.remove(0);
    }
    assert_eq!(buffer.due(), None, "with {list:?}");
}

fn take(buffer: &mut EventBuffer, list: &mut Vec<Item>, input: &mut Input<'_>) {
    let (limit, wanted) = (input.below(30), input.below(30));
    let run = list.iter().map_while(|item| match item {
        Item::Event(event) => Some(*event),
        _ => None,
    });
    let offered: Vec<u32> = run.take(limit).collect();
    let taken = offered[..wanted.min(offered.len())].to_vec();
    let shown = format!("up to {limit}, of which {wanted} are taken, of {list:?}");
    list.drain(..taken.len());
    assert_eq!(buffer.take(limit, wanted), (offered, taken), "{shown}");
}
