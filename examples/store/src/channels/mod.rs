//! Sockets and channels.

pub mod admin;
pub mod cart;
pub mod page;
pub mod product;
pub mod sockets;

use std::{sync::Arc, time::Duration};

use pipeline::ws::{
    Endpoint, Mount,
    endpoint::EndpointBuilder,
    mount::{Drainer, MessageRateLimit},
    presence::TrackerOptions,
};

use self::{
    admin::{CartTrackerChannel, TotalsChannel},
    cart::CartChannel,
    page::PageChannel,
    product::ProductChannel,
    sockets::{AdminSocket, ShopperSocket},
};
use crate::{admins::Admins, shop::Shop};

/// The longest frame of a shopper.
pub const MAX_FRAME: usize = 16 << 10;

/// The events that a shopper may send in a second.
pub const EVENTS_PER_SECOND: u32 = 20;

/// How many channels a node that ends closes at once. A page has three.
pub const DRAIN_BATCH: usize = 1_500;

/// The time from one batch to the next: 2,500 pages a second come back to the other nodes.
pub const DRAIN_INTERVAL: Duration = Duration::from_millis(200);

/// The endpoint of the shop, with its two kinds of socket. Slow shoppers are disconnected, which is the default: their next
/// join brings the state again.
pub fn endpoint(shop: &Arc<Shop>, admins: &Arc<Admins>) -> EndpointBuilder {
    let shoppers = Mount::new(ShopperSocket)
        .channel_with::<ProductChannel>("product:*", shop.clone())
        .channel_with::<CartChannel>("cart:*", shop.clone())
        .channel_with::<PageChannel>("page:drops", shop.clone())
        .max_frame_size(MAX_FRAME)
        .max_message_size(MAX_FRAME)
        .drainer(Drainer::new().batch_size(DRAIN_BATCH).batch_interval(DRAIN_INTERVAL))
        .idle_timeout(shop.idle_timeout)
        .message_rate_limit(MessageRateLimit::per_second(EVENTS_PER_SECOND));
    let admins = Mount::new(AdminSocket::new(shop.clone(), admins.clone()))
        .channel_with::<CartTrackerChannel>("admin:cart_tracker", shop.clone())
        .channel_with::<TotalsChannel>("admin:totals", shop.clone())
        .auth_token(true)
        .max_frame_size(MAX_FRAME)
        .max_message_size(MAX_FRAME)
        .idle_timeout(shop.idle_timeout);
    Endpoint::builder()
        // A placed order waits for a tab of its cart, on whichever node: so each has to know where tabs are.
        .sync_subscriptions(TrackerOptions::new())
        .presence(&shop.presence)
        .mount("/product_socket", shoppers)
        .mount("/admin_socket", admins)
}
