//! A live view of running pipelines and their sockets.
//!
//! An [`Inspector`] is mounted at a path beside the endpoint. Once a second it looks at the pipelines
//! and the endpoint that it was given, without stopping any of them, and shows what it has seen:
//!
//! | path | what |
//! | --- | --- |
//! | `/inspect/` | a page with a drawing of the stages, where they are held up, how long deliveries took, sockets, topics and drops |
//! | `/inspect/data.json` | the same for scripts: a [`View`] |
//! | `/inspect/socket/websocket` | the same once a second, as the event `view` of the topic `inspect`, for any client of Phoenix Channels |
//!
//! ```no_run
//! use axum::Router;
//! use pipeline_core::Pipeline;
//! use pipeline_inspect::Inspector;
//! use pipeline_ws_sink::{BuildError, Endpoint};
//!
//! # async fn run(pipeline: Pipeline, endpoint: Endpoint) -> Result<(), BuildError> {
//! let inspector =
//!     Inspector::builder().pipeline(pipeline.observer()).endpoint(endpoint.observer()).build()?;
//! let app: Router =
//!     Router::new().nest_service("/inspect", inspector).fallback_service(endpoint.clone());
//! # Ok(())
//! # }
//! ```
//!
//! # Who may look
//!
//! It asks nobody for a password. What it shows names stages, mounts and patterns, and never a user, a
//! topic or a payload; still it is not for everyone. Put in front of it what stands in front of your
//! other pages: the sockets of the page go through it as well.
//!
//! It answers requests for `localhost` and for addresses. One for a name is refused with 403, unless
//! [`InspectorBuilder::host`] knows it: by a name of its own that leads to your address, a page from
//! anywhere could else read what it shows. Behind a proxy, that is the name in the browser's address
//! bar. 50 viewers may look at the same time, unless [`InspectorBuilder::max_viewers`] says otherwise.
//!
//! ```no_run
//! use axum::{
//!     Router,
//!     extract::Request,
//!     http::{StatusCode, header::AUTHORIZATION},
//!     middleware::{self, Next},
//!     response::{IntoResponse, Response},
//! };
//! use pipeline_inspect::Inspector;
//!
//! /// Asks for the name `ops` and the password `secret`.
//! async fn ask(request: Request, next: Next) -> Response {
//!     let expected = "Basic b3BzOnNlY3JldA==";
//!     if request.headers().get(AUTHORIZATION).is_some_and(|given| given == expected) {
//!         return next.run(request).await;
//!     }
//!     (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic")]).into_response()
//! }
//!
//! fn protected(inspector: Inspector) -> Router {
//!     Router::new().nest_service("/inspect", inspector).layer(middleware::from_fn(ask))
//! }
//! ```
//!
//! # What holds it up
//!
//! Every stage is busy, waits for events, or waits for demand; the view has the share of each in the last
//! three seconds. A stage is *occupied* if it was busy for 80 % of them. One stage at most is said to hold
//! its pipeline up:
//!
//! 1. Of the occupied stages that somebody waits for, the one that is farthest downstream. Somebody waits
//!    for a stage if one that it has subscribed to waited for demand for 20 % of the time, or had events
//!    buffered at its beginning and at its end.
//! 2. If nobody waits for an occupied stage, the first that cannot do more, from the source on: a
//!    producer, or a stage before which events were waiting at the beginning and at the end. A
//!    supervisor is not meant here: one worker of many is enough for it to be busy.
//!
//! In a chain with one slow stage it is that one: those before it wait for demand, and those behind
//! it for events. When all wait for events, it is none.
//!
//! # What it costs
//!
//! A snapshot a second, and nothing on the way of an event. The JSON is written only when somebody has
//! joined or asks for it. What it remembers is bounded: a few views, and percentiles of five
//! minutes.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::print_stdout, clippy::print_stderr)]
// Moments and durations: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod channel;
mod held_up;
mod history;
mod hosts;
mod inspector;
mod layers;
mod model;
mod page;
mod rates;
mod read;
mod sampler;

pub use self::{
    inspector::{Inspector, InspectorBuilder},
    model::{
        ActivityView, ChannelView, DeliveredView, EdgeView, EndpointView, KindView, MountView,
        PercentilesView, PhaseView, PipelineView, StageView, VERSION, View,
    },
};
