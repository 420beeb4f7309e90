//! The service that serves the page, the JSON and the viewers' sockets.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS,
    },
    uri::Authority,
};
use http_body_util::Full;
use metrics::NoopRecorder;
use pipeline_core::{PipelineOperator, snapshot::PipelineObserver, telemetry::Telemetry};
use pipeline_ws_sink::{
    Endpoint, Mount,
    endpoint::{AnswerBody, BuildError, EndpointObserver, EndpointOperator},
    mount::CheckOrigin,
};
use tokio::task::{AbortHandle, coop::consume_budget};
use tower_service::Service;

use crate::{
    channel::{InspectChannel, InspectSocket, Shown, TOPIC},
    hosts::{self, Hosts},
    lookup::Lookup,
    model::View,
    page::Page,
    sampler::Sampler,
};

type Answer = Response<AnswerBody>;

/// Units of tokio's cooperative budget, 128 per poll of a task, that one request uses.
const REQUEST: usize = 8;

/// A live view of running pipelines and an endpoint: as a page, as JSON, and on a channel.
///
/// Cheap to clone; all clones are the same inspector. It takes a snapshot once a second, in a task of
/// its own. The task and the viewers' sockets end when the last clone is dropped. The inspector does not
/// keep the pipelines or the endpoint alive.
///
/// It is a tower service, to be nested at a path; see [the crate](crate) for an example, and for access
/// control.
///
/// ```
/// use axum::Router;
/// use pipeline_core::{
///     Pipeline,
///     source::{QueueOptions, queue},
///     step::for_each,
///     subscription::SubscribeOptions,
/// };
/// use pipeline_inspect::Inspector;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_queue, producer) = queue::<u64>(QueueOptions::new());
/// let pipeline = Pipeline::builder("numbers")
///     .producer(producer)
///     .consumer(for_each(async |n| println!("{n}")), SubscribeOptions::new())
///     .start()?;
/// let inspector = Inspector::builder().pipeline(pipeline.observer()).build()?;
/// assert_eq!(inspector.view().pipelines[0].name, "numbers");
/// let app: Router = Router::new().nest_service("/inspect", inspector);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Inspector {
    inner: Arc<Inner>,
}

struct Inner {
    page: Page,
    /// Looks up sockets, ends them and stages, if that is on, and its page.
    lookup: Option<(Lookup, Page)>,
    hosts: Hosts,
    /// Whether pages of the requested host may connect without a further check.
    own_pages: bool,
    shown: Arc<Shown>,
    /// The viewers' sockets.
    endpoint: Endpoint,
    sampling: AbortHandle,
}

impl Inspector {
    /// A builder of an inspector, without pipelines or an endpoint yet.
    pub fn builder() -> InspectorBuilder {
        InspectorBuilder {
            pipelines: Vec::new(),
            endpoint: None,
            check_origin: None,
            hosts: Hosts::default(),
            max_viewers: 50,
            operator: None,
            pipeline_operators: Vec::new(),
        }
    }

    /// The latest view, at most a second old. `data.json` contains the same.
    ///
    /// ```
    /// # fn watch(inspector: &pipeline_inspect::Inspector) {
    /// for pipeline in &inspector.view().pipelines {
    ///     if let Some(stage) = &pipeline.bottleneck {
    ///         println!("the bottleneck of {} is {stage}", pipeline.name);
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.inner.shown.latest()
    }

    fn answer(&self, method: &Method, path: &str) -> Answer {
        let known = matches!(path, "" | "/" | "/data.json" | "/lookup");
        if known && !matches!(*method, Method::GET | Method::HEAD) {
            let mut response =
                text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match (path, &self.inner.lookup) {
            ("" | "/", _) => document(&self.inner.page),
            ("/lookup", Some((_, page))) => document(page),
            ("/data.json", _) => {
                let json = serde_json::to_vec(&*self.view())
                    .expect("the keys are strings, and writing to memory does not fail");
                answer(StatusCode::OK, "application/json", json.into())
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

fn document(page: &Page) -> Answer {
    let Page { html, policy } = page.clone();
    let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", html);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    answer(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl<B> Service<Request<B>> for Inspector
where
    B: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !is_known(&self.inner.hosts, &request) {
            let answer =
                text(StatusCode::FORBIDDEN, "unknown host; add it with InspectorBuilder::host\n");
            return in_turn(answer);
        }
        let path = request.uri().path();
        if path.starts_with("/socket/") {
            // Requests have no body.
            let mut request = request.map(|_body| Full::<Bytes>::default());
            if self.inner.own_pages && is_of_the_host_it_asks_for(&request) {
                // The host has been checked here already.
                request.headers_mut().remove(ORIGIN);
            }
            return self.inner.endpoint.clone().call(request);
        }
        if let Some((lookup, _)) = &self.inner.lookup {
            if Lookup::has(path) && is_of_another_page(&self.inner.hosts, &request) {
                return in_turn(text(
                    StatusCode::FORBIDDEN,
                    "a page of another origin may not ask for this\n",
                ));
            }
            let (method, headers) = (request.method(), request.headers());
            let query = request.uri().query().unwrap_or_default();
            if let Some(looking) = lookup.answer(method, path, query, headers) {
                return Box::pin(async {
                    let (status, body) = looking.await;
                    let answer = match body {
                        Ok(body) => answer(status, "application/json", body),
                        Err(fault) => text(status, fault),
                    };
                    in_turn(answer).await
                });
            }
        }
        let answer = self.answer(request.method(), path);
        in_turn(answer)
    }
}

/// Answers within the task's cooperative budget.
fn in_turn(answer: Answer) -> BoxFuture<'static, Result<Answer, Infallible>> {
    Box::pin(async {
        // A client may pipeline many requests.
        for _ in 0..REQUEST {
            consume_budget().await;
        }
        Ok(answer)
    })
}

/// Whether a request names a known host. Clients other than browsers need not name one.
fn is_known<B>(hosts: &Hosts, request: &Request<B>) -> bool {
    let mut named = request.headers().get_all(HOST).iter().map(|host| host.to_str());
    let authority = request.uri().authority();
    named.all(|host| host.is_ok_and(|host| hosts.allow(host)))
        && authority.is_none_or(|authority| hosts.allow(authority.as_str()))
}

/// Whether a request is from a page of the host that it names.
fn is_of_the_host_it_asks_for<B>(request: &Request<B>) -> bool {
    let host = request.uri().authority().map(Authority::as_str).or_else(|| only(request, &HOST));
    only(request, &ORIGIN).zip(host).is_some_and(|(origin, host)| hosts::is_of_host(origin, host))
}

/// Whether a request is from a page that is neither of the host that it names nor of a host that was added.
fn is_of_another_page<B>(hosts: &Hosts, request: &Request<B>) -> bool {
    let is_added = || only(request, &ORIGIN).is_some_and(|origin| hosts.have_page(origin));
    request.headers().contains_key(ORIGIN) && !is_of_the_host_it_asks_for(request) && !is_added()
}

/// The value of a header that a request has once.
fn only<'a, B>(request: &'a Request<B>, name: &HeaderName) -> Option<&'a str> {
    let mut values = request.headers().get_all(name).iter();
    let value = values.next().and_then(|value| value.to_str().ok());
    value.filter(|_| values.next().is_none())
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sampling.abort();
    }
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        let pipelines: Vec<&str> = view.pipelines.iter().map(|pipeline| &*pipeline.name).collect();
        f.debug_struct("Inspector").field("pipelines", &pipelines).finish_non_exhaustive()
    }
}

/// The builder of an [`Inspector`].
#[derive(Debug)]
#[must_use]
pub struct InspectorBuilder {
    pipelines: Vec<PipelineObserver>,
    endpoint: Option<EndpointObserver>,
    check_origin: Option<CheckOrigin>,
    hosts: Hosts,
    max_viewers: usize,
    operator: Option<EndpointOperator>,
    pipeline_operators: Vec<PipelineOperator>,
}

impl InspectorBuilder {
    /// Adds a pipeline. May be called for several pipelines.
    pub fn pipeline(mut self, pipeline: PipelineObserver) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Sets the endpoint. The last call wins.
    pub fn endpoint(mut self, endpoint: EndpointObserver) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Answers requests for this host as well, a name without scheme and port. May be called for several
    /// hosts.
    ///
    /// By default only requests for `localhost` and for addresses are answered: see [the
    /// crate](crate#access-control). Pages of these hosts may connect to the channel.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.hosts.known.push(host.into().to_ascii_lowercase());
        self
    }

    /// Answers requests for any host. For an inspector behind its own access control, such as a
    /// password.
    pub fn any_host(mut self) -> Self {
        self.hosts.any = true;
        self
    }

    /// Maximum number of connected viewers. Default 50.
    ///
    /// Further viewers are answered with 503. Their pages request `data.json` every second instead.
    pub fn max_viewers(mut self, viewers: usize) -> Self {
        self.max_viewers = viewers;
        self
    }

    /// Lets viewers look up the sockets of an id, with the topics that they have joined, and end a
    /// channel, a socket, or all sockets of the id. Off by default: it shows users' topics, and whatever
    /// reaches the inspector may disconnect users. So turn it on behind [access
    /// control](crate#access-control) alone.
    ///
    /// The page is at `lookup`. For scripts, `GET lookup.json?id=users_socket:42` answers with the sockets,
    /// and `POST end?id=users_socket:42` closes all of them, `&socket=7` that one, and `&topic=room:1` ends
    /// its channel. `GET waiting.json` answers with the ten sockets for which the most bytes wait; `POST end?socket=7`
    /// closes one that has no id. The request that ends something needs the header `x-inspect: end`. Requests of pages of
    /// another origin are refused, unless it is that of a [host](Self::host) that was added. Each action is logged at WARN, and counted in `socket.ended_by_operator`. Eight requests may
    /// run at the same time.
    ///
    /// ```
    /// use pipeline_inspect::Inspector;
    /// use pipeline_ws_sink::{Endpoint, endpoint::BuildError};
    ///
    /// # fn build(endpoint: &Endpoint) -> Result<Inspector, BuildError> {
    /// Inspector::builder().endpoint(endpoint.observer()).operator(endpoint.operator()).build()
    /// # }
    /// ```
    pub fn operator(mut self, operator: EndpointOperator) -> Self {
        self.operator = Some(operator);
        self
    }

    /// Lets viewers kill the stages of a pipeline, to see in a drill what users notice. Off by default: a stage that is not
    /// restarting is gone for good, and may end its pipeline. So turn it on behind [access control](crate#access-control)
    /// alone. May be called for several pipelines.
    ///
    /// The page is that of [`operator`](Self::operator), at `lookup`. For scripts, `POST end?pipeline=levels&stage=tell` kills
    /// the stage, with the header `x-inspect: end`. The answer says how many were killed, `{"ended":1}`: none if there is no
    /// such stage, or it does not run. `GET stages.json` names the stages. Requests of pages of another origin are refused, as
    /// for `operator`. Each action is logged at WARN, and counted in `pipeline.stage.failures`.
    ///
    /// ```
    /// use pipeline_core::Pipeline;
    /// use pipeline_inspect::Inspector;
    /// use pipeline_ws_sink::endpoint::BuildError;
    ///
    /// # fn build(levels: &Pipeline) -> Result<Inspector, BuildError> {
    /// Inspector::builder().pipeline(levels.observer()).pipeline_operator(levels.operator()).build()
    /// # }
    /// ```
    pub fn pipeline_operator(mut self, operator: PipelineOperator) -> Self {
        self.pipeline_operators.push(operator);
        self
    }

    /// The origins that may connect to the channel. Default: pages of the requested host, if requests
    /// for it are answered, and pages of the [hosts](Self::host) that were added. Other pages request
    /// `data.json` every second instead.
    pub fn check_origin(mut self, check: CheckOrigin) -> Self {
        self.check_origin = Some(check);
        self
    }

    /// Creates the inspector, takes the first snapshot, and starts the sampling task.
    ///
    /// # Errors
    ///
    /// [`BuildError::Origin`] if [`check_origin`](Self::check_origin) was given an invalid origin, or
    /// [`host`](Self::host) an invalid host.
    ///
    /// # Panics
    ///
    /// If it is called outside of a tokio runtime.
    pub fn build(self) -> Result<Inspector, BuildError> {
        let mut sampler = Sampler::new(self.pipelines, self.endpoint);
        let shown = Arc::new(Shown::new(sampler.look()));
        let viewers = InspectSocket::new(self.max_viewers);
        let viewers = Mount::new(viewers).channel_with::<InspectChannel>(TOPIC, shown.clone());
        // Viewers must not show up in the metrics.
        let mut endpoint = Endpoint::builder().telemetry(Telemetry::with_recorder(NoopRecorder));
        let of_hosts =
            || CheckOrigin::list(self.hosts.known.iter().map(|host| format!("//{host}")));
        let own_pages = self.check_origin.is_none();
        let check = self.check_origin.or_else(|| (!self.hosts.known.is_empty()).then(of_hosts));
        if let Some(check) = check {
            endpoint = endpoint.check_origin(check);
        }
        let endpoint = endpoint.mount("/socket", viewers).build()?;
        let sampling = tokio::spawn(sampler.run(shown.clone(), endpoint.pubsub().clone()));
        let sampling = sampling.abort_handle();
        let lookup = Lookup::new(self.operator, self.pipeline_operators);
        let lookup = lookup.map(|lookup| (lookup, Page::lookup()));
        let (page, hosts) = (Page::new(lookup.is_some()), self.hosts);
        let inner = Inner { page, lookup, hosts, own_pages, shown, endpoint, sampling };
        Ok(Inspector { inner: Arc::new(inner) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn many_pipelined_requests_yield_to_other_tasks() {
        let mut inspector = Inspector::builder().build().unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let others = turns.clone();
        let other = tokio::spawn(async move {
            loop {
                others.fetch_add(1, Relaxed);
                yield_now().await;
            }
        });
        let cases = [
            ("localhost", "/data.json", StatusCode::OK),
            ("localhost", "/elsewhere", StatusCode::NOT_FOUND),
            ("elsewhere.test", "/", StatusCode::FORBIDDEN),
        ];
        for (host, path, status) in cases {
            let before = turns.load(Relaxed);
            for _ in 0..10 * 128 / REQUEST {
                let request = Request::builder().uri(path).header(HOST, host).body(()).unwrap();
                assert_eq!(inspector.call(request).await.unwrap().status(), status, "{host}{path}");
            }
            assert!(turns.load(Relaxed) >= before + 9, "{host}{path}");
        }
        other.abort();
    }
}
