//! A small OpenTelemetry collector: takes OTLP over HTTP and keeps what came.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// A running collector.
pub struct Collector {
    /// For `traces.endpoint`.
    pub endpoint: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
    serving: tokio::task::JoinHandle<()>,
}

/// A span, and what its process says of itself.
#[derive(Clone, Debug)]
pub struct Seen {
    pub span: Span,
    pub attributes: HashMap<String, String>,
    pub process: HashMap<String, String>,
}

impl Collector {
    pub async fn start() -> Self {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        let take = move |headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            kept.lock().unwrap().push(body);
            std::future::ready(StatusCode::OK)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/v1/traces", post(take));
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { endpoint, bodies, serving }
    }

    /// Every byte that came.
    pub fn bytes(&self) -> Vec<u8> {
        self.bodies.lock().unwrap().concat()
    }

    /// Every span that came.
    pub fn spans(&self) -> Vec<Seen> {
        let bodies = self.bodies.lock().unwrap().clone();
        let requests =
            bodies.into_iter().map(|body| ExportTraceServiceRequest::decode(body).unwrap());
        let of_process = requests.flat_map(|request| request.resource_spans);
        of_process
            .flat_map(|spans| {
                let process = map(&spans.resource.as_ref().unwrap().attributes);
                let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.map(move |span| {
                    let attributes = map(&span.attributes);
                    Seen { span, attributes, process: process.clone() }
                })
            })
            .collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Seen {
    /// Its name, and that of the span above it, if it is among `all`.
    pub fn names<'a>(&'a self, all: &'a [Self]) -> (&'a str, Option<&'a str>) {
        let above = all.iter().find(|other| other.span.span_id == self.span.parent_span_id);
        (&self.span.name, above.map(|other| other.span.name.as_str()))
    }

    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.attributes))
    }
}

fn map(attributes: &[KeyValue]) -> HashMap<String, String> {
    let entry = |it: &KeyValue| (it.key.clone(), show(it.value.as_ref().unwrap().value.as_ref()));
    attributes.iter().map(entry).collect()
}

fn show(value: Option<&Value>) -> String {
    match value.unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        Value::ArrayValue(list) => {
            let items: Vec<_> = list.values.iter().map(|item| show(item.value.as_ref())).collect();
            items.join(",")
        }
        other => panic!("{other:?}"),
    }
}
