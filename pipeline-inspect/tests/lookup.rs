//! Sockets that are looked up and ended through the inspector, over HTTP.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use axum::Router;
use pipeline_core::{
    Graph, Pipeline,
    source::{Queue, QueueOptions, queue},
    stage::Stage,
    step::for_each,
    subscription::SubscribeOptions,
};
use pipeline_inspect::{Inspector, InspectorBuilder};
use pipeline_test_support::{PATIENCE, Response, connect, request};
use pipeline_ws_sink::{
    Channel, Endpoint, Mount, Payload, Socket, Topic,
    channel::{JoinContext, JoinError},
    socket::{ConnectError, ConnectInfo, Params},
};
use serde_json::{Value, json};
use tokio::{
    task::yield_now,
    time::{Duration, timeout},
};

const END: &[(&str, &str)] = &[("x-inspect", "end")];

struct Named;

impl Socket for Named {
    type Assigns = String;

    async fn connect(&self, params: &Params, _: &ConnectInfo) -> Result<String, ConnectError> {
        Ok(params.require("name")?.to_owned())
    }

    fn id(&self, name: &String) -> Result<Option<String>, ConnectError> {
        Ok(Some(format!("named:{name}")))
    }
}

struct Any;

impl Channel for Any {
    type Socket = Named;
    type Config = ();

    async fn join(_: &Topic, _: Payload, _: &mut JoinContext<'_, Self>) -> Result<Self, JoinError> {
        Ok(Self)
    }
}

/// Serves an endpoint with its inspector; returns `HOST:PORT`.
async fn serve(with_operator: bool) -> String {
    let mount = Mount::new(Named).channel::<Any>("*");
    let endpoint = Endpoint::builder().mount("/socket", mount).build().unwrap();
    let mut inspector = Inspector::builder().endpoint(endpoint.observer());
    if with_operator {
        inspector = inspector.operator(endpoint.operator());
    }
    serve_at(inspector, Router::new().fallback_service(endpoint.clone())).await
}

/// Serves an inspector; returns `HOST:PORT`.
async fn serve_at(inspector: InspectorBuilder, app: Router) -> String {
    let app = app.nest_service("/inspect", inspector.build().unwrap());
    let listener = pipeline_ws_sink::listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async { axum::serve(listener, app).await });
    address
}

async fn get(address: &str, path: &str) -> Response {
    request(address, "GET", &format!("/inspect/{path}"), &[], "").await
}

async fn post(address: &str, path: &str) -> Value {
    let answer = request(address, "POST", &format!("/inspect/{path}"), END, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn without_the_option_nothing_is_looked_up_or_ended() {
    let address = serve(false).await;
    for path in ["lookup", "lookup.json?id=named:ada", "waiting.json"] {
        assert_eq!(get(&address, path).await.status, 404, "{path}");
    }
    let ended = request(&address, "POST", "/inspect/end?id=named:ada", END, "").await;
    assert_eq!(ended.status, 404);
    assert!(!get(&address, "").await.body.contains("id=\"lookup\""));
}

#[tokio::test]
async fn channel_socket_and_all_of_an_id_are_looked_up_and_ended() {
    let address = serve(true).await;
    let url = |name: &str| format!("ws://{address}/socket/websocket?vsn=2.0.0&name={name}");
    let mut ada = connect(&url("ada")).await.unwrap();
    let hostile = "<img src=x>&\"'";
    ada.join("1", hostile).await;
    ada.join("2", "room:1").await;
    let found = get(&address, "lookup.json?id=named%3Aada").await;
    assert!(found.head.contains("content-type: application/json"), "{}", found.head);
    assert!(found.head.contains("x-content-type-options: nosniff"), "{}", found.head);
    let found = found.json();
    let socket = &found["sockets"][0];
    assert_eq!(socket["id"], "named:ada");
    assert_eq!(get(&address, "waiting.json").await.json(), json!({ "sockets": [] }));
    assert_eq!((&found["id"], &found["more"]), (&json!("named:ada"), &json!(0)));
    assert_eq!(socket["topics"], json!([hostile, "room:1"]));
    assert_eq!(socket["transport"], "websocket");
    let number = &socket["number"];

    let wrong = format!("end?id=named:bob&socket={number}&topic=room:1");
    assert_eq!(post(&address, &wrong).await, json!({ "ended": 0 }));
    let channel = format!("end?id=named:ada&socket={number}&topic=room:1");
    assert_eq!(post(&address, &channel).await, json!({ "ended": 1 }));
    ada.expect([json!(["2", "2", "room:1", "phx_close", {}])]).await;
    let socket = format!("end?id=named:ada&socket={number}");
    assert_eq!(post(&address, &socket).await, json!({ "ended": 1 }));
    assert_eq!(ada.closed().await, 1001);

    // The socket is gone some time after its client has seen the end.
    let gone = async {
        while get(&address, "lookup.json?id=named:ada").await.json()["sockets"] != json!([]) {}
    };
    timeout(PATIENCE, gone).await.unwrap();
    let mut ada = connect(&url("ada")).await.unwrap();
    ada.join("1", "room:1").await;
    assert_eq!(post(&address, "end?id=named:eve").await, json!({ "ended": 0 }));
    assert_eq!(post(&address, "end?id=named:ada").await, json!({ "ended": 1 }));
    assert_eq!(ada.closed().await, 1001);
}

#[tokio::test]
async fn what_a_page_of_another_origin_can_send_ends_nothing() {
    let address = serve(true).await;
    let url = format!("ws://{address}/socket/websocket?vsn=2.0.0&name=ada");
    let mut ada = connect(&url).await.unwrap();
    ada.join("1", "room:1").await;
    let end = "/inspect/end?id=named:ada";
    for headers in [&[][..], &[("x-inspect", "yes")], &[("content-type", "text/plain")]] {
        assert_eq!(request(&address, "POST", end, headers, "").await.status, 403, "{headers:?}");
    }
    // Neither is it if a layer before the inspector lets a page of another origin send the header, or look.
    for (origin, status) in
        [("http://evil.test", 403), ("null", 403), (&*format!("http://{address}"), 200)]
    {
        let headers = [("origin", origin), ("x-inspect", "end")];
        let answer = request(&address, "POST", "/inspect/end?id=named:eve", &headers, "").await;
        assert_eq!(answer.status, status, "{origin}");
        for path in ["lookup.json?id=named:ada", "waiting.json"] {
            let path = format!("/inspect/{path}");
            let answer = request(&address, "GET", &path, &headers[..1], "").await;
            assert_eq!(answer.status, status, "{origin} {path}");
        }
    }
    // The question before a request with such a header is not answered with a permission.
    let preflight = request(&address, "OPTIONS", end, &[("origin", "http://evil.test")], "").await;
    assert_eq!(preflight.status, 403);
    assert!(!preflight.head.contains("access-control"), "{}", preflight.head);
    for (method, path, status) in [
        ("GET", "end?id=named:ada", 405),
        ("POST", "lookup.json?id=named:ada", 405),
        ("GET", "lookup.json", 400),
        ("GET", "lookup.json?socket=7", 400),
        ("POST", "waiting.json", 405),
        ("GET", "lookup.json?id=%zz", 400),
        ("POST", "lookup", 405),
    ] {
        let answer = request(&address, method, &format!("/inspect/{path}"), END, "").await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    let long = format!("lookup.json?id={}", "x".repeat(5000));
    assert_eq!(get(&address, &long).await.status, 400);
    ada.expect_nothing_else().await;
}

#[tokio::test]
async fn the_page_is_linked_and_loads_nothing_from_elsewhere() {
    let address = serve(true).await;
    assert!(get(&address, "").await.body.contains("<a id=\"lookup\" href=\"lookup\">"));
    let page = get(&address, "lookup").await;
    assert_eq!(page.status, 200);
    assert!(page.head.contains("content-type: text/html; charset=utf-8"), "{}", page.head);
    let policy = "content-security-policy: default-src 'none'; script-src 'sha256-";
    assert!(page.head.contains(policy), "{}", page.head);
}

/// A pipeline whose consumer is restarted.
fn numbers() -> (Pipeline, Queue<u64>) {
    let (queue, producer) = queue(QueueOptions::new());
    let mut graph = Graph::new("the numbers");
    let source = graph.producer("source", producer);
    let handles = Stage::restarting(|| for_each(async |_: u64| {})).named("handles");
    let handles = graph.consumer_with(handles.max_restarts(3, Duration::from_secs(60)));
    graph.subscribe(&handles, &source, SubscribeOptions::new());
    (graph.start().unwrap(), queue)
}

#[tokio::test]
async fn a_stage_is_killed_by_its_name_where_the_option_is_on() {
    let (pipeline, _queue) = numbers();
    let shown = || Inspector::builder().pipeline(pipeline.observer());
    let kill = "end?pipeline=the+numbers&stage=handles";
    let without = serve_at(shown(), Router::new()).await;
    let ended = request(&without, "POST", &format!("/inspect/{kill}"), END, "").await;
    assert_eq!((ended.status, get(&without, "stages.json").await.status), (404, 404));

    let inspector = shown().pipeline_operator(pipeline.operator());
    let address = serve_at(inspector, Router::new()).await;
    let stages = json!([{ "name": "the numbers", "stages": ["source", "handles"] }]);
    let offered = json!({ "sockets": false, "pipelines": stages });
    assert_eq!(get(&address, "stages.json").await.json(), offered);
    // Sockets are another option.
    for path in ["lookup.json?id=u", "waiting.json"] {
        assert_eq!(get(&address, path).await.status, 404, "{path}");
    }
    for (method, path, headers, status) in [
        ("POST", kill, &[][..], 403),
        ("GET", kill, END, 405),
        ("POST", "end?id=u", END, 400),
        ("POST", "end?pipeline=the+numbers", END, 400),
        ("POST", "stages.json", END, 405),
        // A page of another origin kills nothing and sees nothing, also if a layer lets it send the header.
        ("POST", kill, &[("origin", "http://evil.test"), END[0]], 403),
        ("POST", kill, &[("origin", "null"), END[0]], 403),
        ("GET", "stages.json", &[("origin", "http://evil.test")], 403),
        ("GET", "stages.json", &[("origin", &format!("http://{address}"))], 200),
        // The question before such a request is refused as well.
        ("OPTIONS", kill, &[("origin", "http://evil.test")], 403),
    ] {
        let answer = request(&address, method, &format!("/inspect/{path}"), headers, "").await;
        assert_eq!(answer.status, status, "{method} {path} {headers:?}");
    }
    for other in ["end?pipeline=the+numbers&stage=other", "end?pipeline=other&stage=handles"] {
        assert_eq!(post(&address, other).await, json!({ "ended": 0 }));
    }
    assert_eq!(pipeline.snapshot().stages[1].failures, 0);
    assert_eq!(post(&address, kill).await, json!({ "ended": 1 }));
    let restarted = async {
        while pipeline.snapshot().stages[1].restarts == 0 {
            yield_now().await;
        }
    };
    timeout(PATIENCE, restarted).await.unwrap();
    assert_eq!(pipeline.snapshot().stages[0].failures, 0);
    // A stage that is not restarted is gone for good.
    let source = "end?pipeline=the+numbers&stage=source";
    assert_eq!(post(&address, source).await, json!({ "ended": 1 }));
    timeout(PATIENCE, pipeline.observer().failed()).await.unwrap();
    assert_eq!(post(&address, source).await, json!({ "ended": 0 }));
}
