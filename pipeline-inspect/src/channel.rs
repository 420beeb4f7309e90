//! The channel that sends views to viewers.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use http::StatusCode;
use parking_lot::Mutex;
use pipeline_ws_sink::{
    Channel, Payload, Socket, Topic,
    channel::{JoinContext, JoinError},
    socket::{ConnectError, ConnectInfo, Params},
};

use crate::model::View;

/// The topic that viewers join.
pub(crate) const TOPIC: &str = "inspect";

/// The event of a view.
pub(crate) const EVENT: &str = "view";

/// State shared by the sampler and the viewers.
#[derive(Debug)]
pub(crate) struct Shown {
    latest: Mutex<Arc<View>>,
    viewers: AtomicUsize,
}

impl Shown {
    pub(crate) fn new(view: View) -> Self {
        Self { latest: Mutex::new(Arc::new(view)), viewers: AtomicUsize::new(0) }
    }

    /// The latest view.
    pub(crate) fn latest(&self) -> Arc<View> {
        self.latest.lock().clone()
    }

    pub(crate) fn show(&self, view: View) -> Arc<View> {
        let view = Arc::new(view);
        *self.latest.lock() = view.clone();
        view
    }

    /// Whether a viewer has joined.
    pub(crate) fn has_viewers(&self) -> bool {
        self.viewers.load(Relaxed) > 0
    }
}

/// Accepts every viewer up to the limit: access control is the task of the layers in front.
pub(crate) struct InspectSocket {
    max: usize,
    open: Arc<AtomicUsize>,
}

impl InspectSocket {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, open: Arc::default() }
    }
}

impl Socket for InspectSocket {
    type Assigns = Place;

    async fn connect(&self, _: &Params, _: &ConnectInfo) -> Result<Place, ConnectError> {
        let one_more = |open| (open < self.max).then_some(open + 1);
        if self.open.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            return Err(ConnectError::because("too many viewers")
                .respond(StatusCode::SERVICE_UNAVAILABLE, "too many viewers\n"));
        }
        Ok(Place(self.open.clone()))
    }
}

/// Counts a viewer's socket while it is open.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A viewer's channel, counted while it is joined.
pub(crate) struct InspectChannel(Arc<Shown>);

impl Channel for InspectChannel {
    type Socket = InspectSocket;
    type Config = Arc<Shown>;

    async fn join(
        _: &Topic,
        _: Payload,
        cx: &mut JoinContext<'_, Self>,
    ) -> Result<Self, JoinError> {
        let shown = cx.config().clone();
        // The viewer need not wait for the next sample.
        cx.reply(&*shown.latest());
        shown.viewers.fetch_add(1, Relaxed);
        Ok(Self(shown))
    }
}

impl Drop for InspectChannel {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Relaxed);
    }
}
