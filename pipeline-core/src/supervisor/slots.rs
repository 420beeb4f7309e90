//! The slots of a supervisor's subscriptions.

use crate::{
    stage::demand::Slots,
    subscription::{SubscribeOptions, Subscription, SubscriptionId},
};

/// The slots of all subscriptions of a supervisor.
pub(super) struct SubscriptionSlots {
    slots: foldhash::HashMap<SubscriptionId, (Subscription, Slots)>,
    /// The smallest number of slots of a subscription that may stay taken without delaying demand
    /// for the others.
    spare: usize,
}

impl SubscriptionSlots {
    pub(super) fn new() -> Self {
        Self { slots: foldhash::HashMap::default(), spare: usize::MAX }
    }

    pub(super) fn add(&mut self, subscription: &Subscription, options: &SubscribeOptions) {
        self.slots.insert(subscription.id(), (subscription.clone(), Slots::new(options)));
        self.count_spare();
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        self.slots.remove(&id);
        self.count_spare();
    }

    /// Removes all slots, so that no demand is sent for slots that are freed from now on.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
    }

    #[inline]
    pub(super) fn spare(&self) -> usize {
        self.spare
    }

    /// Updates the number of spare slots after a subscription was added or removed.
    fn count_spare(&mut self) {
        let spare = self.slots.values().map(|(_, slots)| slots.spare());
        self.spare = spare.min().unwrap_or(usize::MAX);
    }

    /// Frees a slot. A child that was started by hand has none.
    #[inline]
    pub(super) fn free(&mut self, subscription: Option<SubscriptionId>) {
        if let Some(subscription) = subscription
            && let Some((_, slots)) = self.slots.get_mut(&subscription)
        {
            slots.free();
        }
    }

    /// Sends demand for free slots. Called last in a callback, so that slots that are freed
    /// together are asked for together, and a supervisor that is about to stop asks for none.
    #[inline]
    pub(super) fn ask(&mut self) {
        for (subscription, slots) in self.slots.values_mut() {
            subscription.ask(slots.ask());
        }
    }
}
