//! The bodies of answers.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// How long a body is whose end is held back until the rest is written. A shorter one is soon with the operating system,
/// which does not tell whether a client has got it.
const HELD_BACK: usize = 64 << 10;

/// For how long the end is held back at most. A layer that keeps what it has read, to compress it or to read all of it,
/// would wait for the end without end.
const HELD_FOR: Duration = Duration::from_secs(5);

/// The body of an answer of an [`Endpoint`](crate::Endpoint).
///
/// Its length is known. Its end may come only once the rest has been written.
pub struct AnswerBody {
    /// What is not given to the connection yet, in order.
    first: Bytes,
    last: Bytes,
    written: Option<Arc<Written>>,
    held: Option<Pin<Box<Sleep>>>,
    kept: Option<Arc<dyn Kept>>,
}

/// What is kept until a body is written, or its connection has ended.
pub(crate) trait Kept: Send + Sync + 'static {
    /// The connection takes the end of the body. If this is not called, the client has not got all of it.
    fn ends(&self);
}

/// Whether the connection has written what it was given first.
#[derive(Debug, Default)]
struct Written {
    is_done: AtomicBool,
    waker: AtomicWaker,
}

/// A part of a body.
struct Part {
    bytes: Bytes,
    written: Option<Arc<Written>>,
    _kept: Arc<dyn Kept>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(written) = &self.written {
            written.is_done.store(true, SeqCst);
            written.waker.wake();
        }
    }
}

impl AnswerBody {
    /// A body with something that is kept until it is written.
    pub(crate) fn kept(mut body: Bytes, kept: Arc<dyn Kept>) -> Self {
        let (mut first, mut written) = (Bytes::new(), None);
        if body.len() > HELD_BACK {
            let done = Arc::<Written>::default();
            let bytes = body.split_to(body.len() - 1);
            let part = Part { bytes, written: Some(done.clone()), _kept: kept.clone() };
            (first, written) = (Bytes::from_owner(part), Some(done));
        }
        let last = Bytes::from_owner(Part { bytes: body, written: None, _kept: kept.clone() });
        Self { first, last, written, held: None, kept: Some(kept) }
    }
}

impl From<Bytes> for AnswerBody {
    fn from(body: Bytes) -> Self {
        Self { first: Bytes::new(), last: body, written: None, held: None, kept: None }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut this.first)))));
        }
        if let Some(written) = &this.written {
            written.waker.register(context.waker());
            if !written.is_done.load(SeqCst) {
                let held = this.held.get_or_insert_with(|| Box::pin(sleep(HELD_FOR)));
                ready!(held.as_mut().poll(context));
            }
            (this.written, this.held) = (None, None);
        }
        if let Some(kept) = this.kept.take() {
            kept.ends();
        }
        let last = mem::take(&mut this.last);
        Poll::Ready((!last.is_empty()).then(|| Ok(Frame::data(last))))
    }

    fn is_end_stream(&self) -> bool {
        // An empty body with something that is kept has to be asked for its end.
        self.first.is_empty() && self.last.is_empty() && self.kept.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.first.len() + self.last.len()) as u64)
    }
}

impl fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.first.len() + self.last.len();
        f.debug_struct("AnswerBody").field("left", &left).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[derive(Default)]
    struct Keeps(AtomicBool);

    impl Kept for Keeps {
        fn ends(&self) {
            self.0.store(true, SeqCst);
        }
    }

    fn frame(body: &mut AnswerBody) -> Option<Option<Bytes>> {
        let next = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).now_or_never()?;
        Some(next.map(|frame| frame.unwrap().into_data().unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_long_body_comes_after_a_while_also_if_the_rest_is_kept() {
        let (keeps, long) = (Arc::<Keeps>::default(), vec![7; HELD_BACK + 1]);
        let begun = tokio::time::Instant::now();
        let all = AnswerBody::kept(long.into(), keeps.clone()).collect().await.unwrap();
        assert_eq!(all.to_bytes().len(), HELD_BACK + 1);
        assert_eq!(begun.elapsed().as_secs(), HELD_FOR.as_secs());
        assert!(keeps.0.load(SeqCst));
    }

    #[tokio::test]
    async fn the_end_of_a_long_body_waits_until_the_rest_is_written() {
        let (keeps, long) = (Arc::<Keeps>::default(), vec![7; HELD_BACK + 1]);
        let mut body = AnswerBody::kept(long.clone().into(), keeps.clone());
        assert_eq!(body.size_hint().exact(), Some(long.len() as u64));
        let first = frame(&mut body).unwrap().unwrap();
        assert_eq!(frame(&mut body), None);
        let ends = || keeps.0.load(SeqCst);
        assert!(!ends());
        // A connection that ends drops both, and the client has not got all.
        assert_eq!(first.len(), HELD_BACK);
        drop(first);
        assert_eq!(frame(&mut body).unwrap().unwrap().len(), 1);
        assert!(ends());
        assert_eq!(frame(&mut body), Some(None));
        assert!(body.is_end_stream());
    }

    #[test]
    fn what_is_kept_lives_until_all_is_written_or_dropped() {
        for length in [0, 1, HELD_BACK, 2 * HELD_BACK] {
            let keeps = Arc::<Keeps>::default();
            let weak = Arc::downgrade(&keeps);
            let mut body = AnswerBody::kept(vec![7; length].into(), keeps);
            let taken = frame(&mut body).unwrap();
            drop(body);
            assert_eq!(weak.upgrade().is_some(), length > 0, "{length}");
            let ends = weak.upgrade().map(|it| it.0.load(SeqCst));
            assert_eq!(ends, (length > 0).then_some(length <= HELD_BACK));
            drop(taken);
            assert!(weak.upgrade().is_none(), "{length}");
        }
    }
}
