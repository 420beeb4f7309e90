//! When a stage that always has work yields, polls its timers, or reads its mailbox. Pure.

/// How many messages a stage handles before it yields.
const YIELD_AFTER: usize = 128;

/// After how many callbacks a stage polls `ready` and its timers first.
const POLL_AFTER: usize = 16;

/// The turns of a stage's sources of work.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The work since the stage last waited or yielded: messages, and whatever else needs a
    /// callback. A completed `ready` counts as several, because that is work that it was not sent.
    since_yield: usize,
    /// Callbacks since the stage last polled `ready` and its timers.
    since_poll: usize,
    /// Whether mailbox messages come before the inlet. The two take turns: all pending messages,
    /// then one message of the inlet.
    pub(super) mailbox_first: bool,
    /// Whether `ready` comes before the timers, because one of them has just been called.
    ready_first: bool,
}

impl Turns {
    #[inline]
    pub(super) fn must_yield(&self) -> bool {
        self.since_yield >= YIELD_AFTER
    }

    #[inline]
    pub(super) fn must_poll(&self) -> bool {
        self.since_poll >= POLL_AFTER
    }

    /// Counts a message, or other work that needs a callback.
    #[inline]
    pub(super) fn count_work(&mut self) {
        self.since_yield += 1;
    }

    #[inline]
    pub(super) fn count_callback(&mut self) {
        self.since_poll += 1;
    }

    /// Counts a completed `ready`.
    pub(super) fn count_ready(&mut self) {
        self.since_yield += POLL_AFTER;
    }

    /// Counts a call of a timer, which may be due again at once.
    pub(super) fn timer_called(&mut self) {
        self.since_yield += 1;
        self.ready_first = true;
    }

    /// Whether `ready` is polled before the timers, this time.
    #[inline]
    pub(super) fn ready_first(&mut self) -> bool {
        std::mem::take(&mut self.ready_first)
    }

    #[inline]
    pub(super) fn polled(&mut self) {
        self.since_poll = 0;
    }

    /// The stage waits, which lets other tasks run.
    #[inline]
    pub(super) fn waited(&mut self) {
        self.since_yield = 0;
    }

    /// The stage yields, and polls next.
    pub(super) fn yielded(&mut self) {
        self.since_yield = 0;
        self.since_poll = POLL_AFTER;
    }
}
