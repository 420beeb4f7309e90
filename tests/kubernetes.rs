//! `docs/deploy/kubernetes.yaml`: its fields are those of a deployment, and its ports, probes and times fit those
//! of a node.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests too")]
#![cfg(unix)]

use std::{fs, net::TcpListener, time::Duration};

use pipeline_test_support::{Example, PATIENCE, get, project};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// The lines of a document, without comments, and how far each is indented.
fn lines(text: &str) -> Vec<(usize, String)> {
    let content = |line: &str| {
        let line = line.split('#').next().unwrap().trim_end().to_owned();
        (line.len() - line.trim_start().len(), line.trim_start().to_owned())
    };
    text.lines().map(content).filter(|(_, line)| !line.is_empty()).collect()
}

/// Reads the part of YAML that the file uses: maps and lists by indentation, and maps in braces.
fn read(lines: &mut Vec<(usize, String)>) -> Value {
    let indent = lines[0].0;
    let (mut map, mut list) = (Map::new(), Vec::new());
    while let Some((at, line)) = lines.first().cloned()
        && at == indent
    {
        if let Some(item) = line.strip_prefix("- ") {
            // The item begins two columns further.
            lines[0] = (at + 2, item.to_owned());
            list.push(read(lines));
            continue;
        }
        lines.remove(0);
        let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("no key: {line:?}"));
        let value = match value.trim() {
            "" => {
                assert!(lines.first().is_some_and(|next| next.0 > indent), "{key} has no value");
                read(lines)
            }
            value => scalar(value),
        };
        assert!(map.insert(key.to_owned(), value).is_none(), "{key} is there twice");
    }
    assert!(lines.first().is_none_or(|next| next.0 < indent), "misplaced: {:?}", lines[0]);
    assert!(map.is_empty() || list.is_empty(), "a list and a map: {map:?}");
    if list.is_empty() { map.into() } else { list.into() }
}

fn scalar(text: &str) -> Value {
    if let Some(inside) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        let pairs = inside.split(',').map(|pair| pair.split_once(':').unwrap());
        return pairs.map(|(key, value)| (key.trim().to_owned(), scalar(value.trim()))).collect();
    }
    text.parse::<u64>().map_or_else(|_| json!(text), Value::from)
}

/// Checks that a value has only the fields of a schema, and their kinds: `"text"`, `0` a number, and `"either"`.
fn check(value: &Value, schema: &Value, path: &str) {
    match (value, schema) {
        (Value::Object(fields), Value::Object(known)) if known.contains_key("*") => {
            fields.values().for_each(|value| check(value, &known["*"], path));
        }
        (Value::Object(fields), Value::Object(known)) => {
            for (name, value) in fields {
                let schema = known.get(name).unwrap_or_else(|| panic!("{path} has no {name:?}"));
                check(value, schema, &format!("{path}.{name}"));
            }
        }
        (Value::Array(items), Value::Array(schema)) => {
            items.iter().for_each(|item| check(item, &schema[0], path));
        }
        (Value::String(_), Value::String(kind)) => assert_ne!(kind, "number", "{path}"),
        (Value::Number(_), Value::String(kind)) => assert_eq!(kind, "either", "{path}"),
        (Value::Number(_), Value::Number(_)) => {}
        (value, schema) => panic!("{path} is {value}, and should be as {schema}"),
    }
}

/// The fields of a deployment that are known here, as the reference of its API names them.
fn deployment() -> Value {
    let metadata = json!({ "name": "text", "labels": { "*": "text" } });
    let probe = json!({
        "httpGet": { "path": "text", "port": "either" },
        "periodSeconds": 0,
        "failureThreshold": 0,
        "initialDelaySeconds": 0,
        "timeoutSeconds": 0,
    });
    let container = json!({
        "name": "text",
        "image": "text",
        "ports": [{ "name": "text", "containerPort": 0, "protocol": "text" }],
        "readinessProbe": probe,
        "livenessProbe": probe,
        "startupProbe": probe,
    });
    let rolling = json!({ "maxSurge": "either", "maxUnavailable": "either" });
    json!({
        "apiVersion": "text",
        "kind": "text",
        "metadata": metadata,
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": { "*": "text" } },
            "strategy": { "type": "text", "rollingUpdate": rolling },
            "minReadySeconds": 0,
            "template": {
                "metadata": metadata,
                "spec": { "terminationGracePeriodSeconds": 0, "containers": [container] },
            },
        },
    })
}

#[tokio::test]
async fn the_file_for_kubernetes_fits_a_node() {
    let text = fs::read_to_string(project().join("docs/deploy/kubernetes.yaml")).unwrap();
    let file = read(&mut lines(&text));
    check(&file, &deployment(), "the file");
    assert_eq!((&file["apiVersion"], &file["kind"]), (&json!("apps/v1"), &json!("Deployment")));
    let (spec, pod) = (&file["spec"], &file["spec"]["template"]["spec"]);
    assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
    // A new pod comes first, so that no client finds fewer.
    let rolling = &spec["strategy"]["rollingUpdate"];
    assert_eq!((&rolling["maxSurge"], &rolling["maxUnavailable"]), (&json!(1), &json!(0)));

    let container = &pod["containers"][0];
    let ports = container["ports"].as_array().unwrap();
    let port_of = |name: &str| {
        let port = ports.iter().find(|port| port["name"] == name);
        port.unwrap_or_else(|| panic!("no port is named {name:?}"))["containerPort"].clone()
    };
    assert_eq!((&ports[0]["containerPort"], port_of("admin")), (&json!(4000), json!(4001)));

    // The times: those that the comment in the file adds up.
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let (linger, drain, close, end) = (5, 10, 30, 20);
    assert!(grace >= linger + drain + close + end, "{grace} s");
    let ready = &container["readinessProbe"];
    let noticed =
        ready["periodSeconds"].as_u64().unwrap() * ready["failureThreshold"].as_u64().unwrap();
    assert!(noticed <= linger, "a node lingers until its readiness is known: {noticed} s");

    // A node with the flags of a pod answers the probes where they ask.
    let [socket, admin] = [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    });
    let flags = ["--port", &socket, "--admin-port", &admin, "--linger", &linger.to_string()];
    let _node = Example::channels(&flags).await;
    let admin = format!("127.0.0.1:{admin}");
    for probe in ["readinessProbe", "livenessProbe"] {
        let http = &container[probe]["httpGet"];
        assert_eq!(http["port"], "admin", "{probe}");
        let path = http["path"].as_str().unwrap();
        let healthy = timeout(PATIENCE, async {
            while TcpStream::connect(&admin).await.is_err() || get(&admin, path).await.status != 200
            {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(healthy.await.is_ok(), "{probe}: {path} is not answered with 200");
    }
    assert_eq!(
        get(&admin, "/nothing").await.status,
        404,
        "the probes ask for a path that is there"
    );
}

#[test]
fn a_file_with_a_mistake_is_none() {
    let broken = |from: &str, to: &str| {
        let text = fs::read_to_string(project().join("docs/deploy/kubernetes.yaml")).unwrap();
        assert!(text.contains(from), "{from}");
        let text = text.replace(from, to);
        std::panic::catch_unwind(|| check(&read(&mut lines(&text)), &deployment(), "the file"))
            .is_err()
    };
    assert!(!broken("replicas: 3", "replicas: 4"));
    assert!(broken("replicas: 3", "replicas: many"));
    assert!(broken("minReadySeconds", "minReadySecond"));
    assert!(broken("  template:\n", "    template:\n"));
    assert!(broken("      terminationGracePeriodSeconds", "    terminationGracePeriodSeconds"));
}
