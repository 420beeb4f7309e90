//! A channel's mailbox whose senders, reader and end meet in random orders, on several threads.

use std::collections::HashMap;

use pipeline_test_support::{PATIENCE, Schedule, on_any_schedule};
use serde_json::json;
use tokio::time::timeout;

use super::*;

/// More than may wait, from one sender alone.
const MESSAGES: u32 = 300;

/// The ways in which a sender sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    /// Waits for room, and sometimes gives up.
    Send,
    /// A message that the caller keeps if there is no room.
    Try,
    /// A broadcast that the sender keeps if there is no room, or that waits for it.
    Offer,
    /// A broadcast that does not wait: without room, the channel ends.
    Broadcast,
    /// The same, on another topic.
    Foreign,
}

/// How the channel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// By its last message, when all others have been sent.
    Afterwards,
    /// By its last message while others are sent.
    Meanwhile,
    /// By itself.
    Gone,
}

/// The sender and the number of a message.
type Numbered = (Way, u32);

/// A broadcast with a number, and with this payload.
fn large(number: u32, payload: &Payload) -> Intercepted {
    let (event, copy) = (number.to_string().into(), InterceptedCopy::default());
    Intercepted { event, payload: payload.clone(), timeline: None, copy }
}

/// A broadcast with a number.
fn news(number: u32) -> Encoded {
    Encoded::new("t", &number.to_string(), json!({})).unwrap()
}

/// Sends numbered messages in one way. Returns the accepted numbers.
async fn send(
    mailbox: Arc<Mailbox>,
    way: Way,
    count: u32,
    payload: Payload,
    mut schedule: Schedule,
) -> Vec<u32> {
    let (mut accepted, waits) = (Vec::new(), schedule.once_in(2));
    let internal = |number: u32| ChannelMessage::Internal(Box::new((way, number)));
    for number in 0..count {
        let sent = match way {
            Way::Send if schedule.once_in(4) => {
                tokio::select! {
                    biased;
                    sent = mailbox.send(internal(number)) => sent,
                    () = schedule.pause() => Err(NotSent::Full),
                }
            }
            Way::Send => mailbox.send(internal(number)).await,
            Way::Try => mailbox.try_send(internal(number)),
            Way::Offer => match mailbox.offer(large(number, &payload)) {
                // As a sender that waits for slow clients.
                Err(NotSent::Full) if waits => {
                    mailbox.send(ChannelMessage::Intercepted(large(number, &payload))).await
                }
                offered => offered,
            },
            Way::Broadcast => {
                mailbox.intercepted(large(number, &news(number).payload()), Room::Twice);
                Ok(())
            }
            Way::Foreign => {
                mailbox.foreign((&news(number)).into());
                Ok(())
            }
        };
        match sent {
            Ok(()) => accepted.push(number),
            Err(NotSent::Full) => {}
            Err(NotSent::Closed) => break,
        }
        assert_bounds(&mailbox);
        schedule.pause().await;
    }
    accepted
}

fn assert_bounds(mailbox: &Mailbox) {
    let counts = mailbox.state.lock().counts;
    let bounds = [2 * CAPACITY, CAPACITY, CAPACITY];
    assert!(counts.iter().zip(bounds).all(|(count, most)| *count <= most), "{counts:?}");
}

/// Receives until the channel ends. Returns the messages, and the number of lost broadcasts if the
/// mailbox overflowed.
async fn receive(
    reader: MailboxReader,
    intercepts: Way,
    mut most: usize,
    mut schedule: Schedule,
) -> (Vec<Numbered>, Option<u64>) {
    let (mut received, slow) = (Vec::new(), schedule.once_in(3));
    while most > 0 {
        most -= 1;
        let message = match reader.0.receive().await {
            Ok(message) => message,
            Err(Overflow { dropped }) => return (received, Some(dropped)),
        };
        received.push(match message {
            ChannelMessage::Internal(message) => *message.downcast::<Numbered>().unwrap(),
            ChannelMessage::Intercepted(news) => (intercepts, news.event.parse().unwrap()),
            ChannelMessage::Foreign(news) => (Way::Foreign, news.event().parse().unwrap()),
            ChannelMessage::Close(_) => break,
            ChannelMessage::Event { .. }
            | ChannelMessage::Leave { .. }
            | ChannelMessage::Expiring
            | ChannelMessage::Stop => unreachable!(),
        });
        schedule.pause().await;
        if slow && schedule.once_in(8) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    (received, None)
}

/// `payload` alone leaves no room for another broadcast.
async fn case(seed: u64, payload: Payload) {
    let mut schedule = Schedule::new(seed);
    let payload = if schedule.once_in(2) { payload } else { Payload::binary("") };
    let ending =
        schedule.one_of(&[Ending::Afterwards, Ending::Afterwards, Ending::Meanwhile, Ending::Gone]);
    let mailbox = Arc::<Mailbox>::default();
    let reader = MailboxReader(mailbox.clone());
    let intercepts = schedule.one_of(&[Way::Offer, Way::Broadcast]);
    let most = if ending == Ending::Gone { schedule.pick(..200) } else { usize::MAX };
    let receiving = tokio::spawn(receive(reader, intercepts, most, schedule.fork()));
    // Broadcasts that do not wait overflow the mailbox in some schedules only.
    let broadcasts = u32::try_from(schedule.one_of(&[100, 100, 600])).unwrap();
    let senders = [
        (Way::Send, MESSAGES),
        (Way::Try, MESSAGES),
        (intercepts, if intercepts == Way::Offer { MESSAGES } else { 2 * broadcasts }),
        (Way::Foreign, broadcasts),
    ];
    let senders = senders.map(|(way, count)| {
        let sending =
            tokio::spawn(send(mailbox.clone(), way, count, payload.clone(), schedule.fork()));
        (way, sending)
    });
    if ending == Ending::Meanwhile {
        for _ in 0..schedule.pick(..200) {
            schedule.pause().await;
        }
        mailbox.close(ExitReason::Normal);
    }
    let mut accepted = HashMap::new();
    for (way, sender) in senders {
        let sent = timeout(PATIENCE, sender).await;
        accepted.insert(way, sent.unwrap_or_else(|_| panic!("{way:?} waits forever")).unwrap());
    }
    if ending == Ending::Afterwards {
        mailbox.close(ExitReason::Normal);
    }
    let received = timeout(PATIENCE, receiving).await.expect("the reader waits forever").unwrap();
    let (received, overflow) = received;
    for (way, accepted) in &accepted {
        let of_way = received.iter().filter(|(from, _)| from == way).map(|(_, number)| *number);
        let received: Vec<u32> = of_way.collect();
        assert!(accepted.starts_with(&received), "{way:?}: {received:?} of {accepted:?}");
        if ending == Ending::Afterwards && overflow.is_none() {
            assert_eq!(received.len(), accepted.len(), "{way:?} misses messages");
        }
    }
    if let Some(dropped) = overflow {
        let broadcasts = |way: &Way| matches!(way, Way::Offer | Way::Broadcast | Way::Foreign);
        let sent: usize =
            accepted.iter().filter(|(way, _)| broadcasts(way)).map(|(_, sent)| sent.len()).sum();
        let received = received.iter().filter(|(way, _)| broadcasts(way)).count();
        assert!((received as u64 + dropped) <= sent as u64, "more is lost than was sent");
        assert!(dropped > u64::from(CAPACITY), "an overflow at {dropped}");
    }
    let state = mailbox.state.lock();
    assert!(state.closed && state.messages.is_empty());
}

#[test]
fn every_message_is_received_in_order_and_no_sender_waits_for_a_channel_with_room_or_an_ended_one()
{
    let payload = Payload::binary(vec![0; BYTES]);
    on_any_schedule(150, |seed| case(seed, payload.clone()));
}
