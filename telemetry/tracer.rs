//! Spans on their way to a collector: a bounded queue, and a thread that sends batches of them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use opentelemetry::trace::{self as otel, SpanContext, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{RetryPolicy, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks,
    SpanProcessor,
};
use protocol::config::Traces;
use protocol::{SpanId, TraceContext, TraceId};
use tracing::warn;

/// Between two warnings that the collector takes no spans.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// How long a process that ends waits for its last spans to be taken.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Who emits spans.
#[derive(Clone, Debug)]
pub struct Service {
    /// What collectors group spans by: `service.name`.
    pub name: &'static str,
    /// Of the release: `service.version`.
    pub version: &'static str,
}

/// A finished piece of work.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its own place in its trace.
    pub context: TraceContext,
    /// The span that it is a part of.
    pub parent: Option<SpanId>,
    /// What is done.
    pub name: Cow<'static, str>,
    /// Whether it answers somebody outside this process.
    pub kind: Kind,
    /// When it began.
    pub start: Instant,
    /// Not before `start`.
    pub end: Instant,
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, where it did.
    pub error: Option<Cow<'static, str>>,
    /// The client's `tracestate`, as it came.
    pub state: String,
}

/// What a span is to the span above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A part of its process's work.
    Internal,
    /// The answer to a call from another process.
    Server,
}

/// Takes spans; clones share it. Without an endpoint it takes none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Sender>>);

#[derive(Debug)]
struct Sender {
    queue: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Tracer {
    /// A tracer that sends spans as `config` says: on a thread of its own, which begins here.
    ///
    /// # Errors
    /// When the endpoint is no address.
    pub fn open(config: &Traces, service: &Service) -> Result<Self> {
        if config.endpoint.is_empty() {
            return Ok(Self(None));
        }
        let timeout = Duration::from_millis(config.export_timeout_ms);
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')))
            .with_timeout(timeout)
            // The next batch is the next try: spans are worth no more.
            .with_retry_policy(RetryPolicy::disabled())
            .build()
            .with_context(|| format!("spans can't be sent to {}", config.endpoint))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(config.max_queued_spans)
            .with_max_export_batch_size(config.max_batch_spans)
            .with_scheduled_delay(Duration::from_millis(config.export_interval_ms))
            .build();
        let exporter = Patient::new(exporter, config.endpoint.clone());
        let mut queue = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        queue.set_resource(&resource(service)?);
        let scope = InstrumentationScope::builder(service.name).with_version(service.version);
        Ok(Self(Some(Arc::new(Sender { queue, scope: scope.build() }))))
    }

    /// Whether spans go anywhere.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Hands a span over; it is dropped where the queue is full. Never waits.
    pub fn record(&self, span: Span) {
        let Some(sender) = &self.0 else { return };
        let (now, system_now) = (Instant::now(), SystemTime::now());
        let at = |then| system_now - now.saturating_duration_since(then);
        let flags = if span.context.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        sender.queue.on_end(SpanData {
            span_context: SpanContext::new(
                trace_id(span.context.trace),
                span_id(span.context.span),
                flags,
                false,
                span.state.parse().unwrap_or(TraceState::NONE),
            ),
            parent_span_id: span.parent.map_or(otel::SpanId::INVALID, span_id),
            parent_span_is_remote: span.parent.is_some() && span.kind == Kind::Server,
            span_kind: match span.kind {
                Kind::Internal => otel::SpanKind::Internal,
                Kind::Server => otel::SpanKind::Server,
            },
            name: span.name,
            start_time: at(span.start),
            end_time: at(span.end),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: sender.scope.clone(),
        });
    }

    /// Sends what is left and ends the thread. Blocks, at most for a moment: call it when no
    /// runtime is left.
    pub fn shut_down(&self) {
        if let Some(sender) = &self.0
            && let Err(cause) = sender.queue.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            warn!(%cause, "the last spans are lost");
        }
    }
}

fn trace_id(id: TraceId) -> otel::TraceId {
    otel::TraceId::from_bytes(id.0)
}

fn span_id(id: SpanId) -> otel::SpanId {
    otel::SpanId::from_bytes(id.0.to_be_bytes())
}

/// Which process speaks. `service.instance.id` is new with every start.
fn resource(service: &Service) -> Result<Resource> {
    let instance = getrandom::u64().context("no random numbers")?;
    let mut attributes = vec![
        KeyValue::new("service.name", service.name),
        KeyValue::new("service.namespace", "autoglm"),
        KeyValue::new("service.version", service.version),
        KeyValue::new("service.instance.id", format!("{instance:016x}")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
        KeyValue::new("telemetry.sdk.language", "rust"),
        KeyValue::new("telemetry.sdk.name", "opentelemetry"),
    ];
    if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        attributes.push(KeyValue::new("host.name", host.trim().to_owned()));
    }
    Ok(Resource::builder_empty().with_attributes(attributes).build())
}

/// An exporter whose failures are warned of now and then, and are nobody else's business.
struct Patient<E> {
    exporter: E,
    endpoint: String,
    since: Instant,
    // Milliseconds after `since` before which nothing is said.
    silent_until: AtomicU64,
    num_lost: AtomicU64,
}

impl<E> Patient<E> {
    fn new(exporter: E, endpoint: String) -> Self {
        let (silent_until, num_lost) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { exporter, endpoint, since: Instant::now(), silent_until, num_lost }
    }

    /// How many spans are lost since the last word about it, where another is due.
    fn lost(&self, num_spans: u64, now: Duration) -> Option<u64> {
        let num_lost = self.num_lost.fetch_add(num_spans, Ordering::Relaxed) + num_spans;
        let now = now.as_millis() as u64;
        if now < self.silent_until.load(Ordering::Relaxed) {
            return None;
        }
        let until = now + WARNING_INTERVAL.as_millis() as u64;
        self.silent_until.store(until, Ordering::Relaxed);
        self.num_lost.store(0, Ordering::Relaxed);
        Some(num_lost)
    }
}

impl<E> fmt::Debug for Patient<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patient").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Patient<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let num_spans = batch.len() as u64;
        if let Err(cause) = self.exporter.export(batch).await
            && let Some(num_lost) = self.lost(num_spans, self.since.elapsed())
        {
            warn!(endpoint = self.endpoint, num_lost, %cause, "the collector takes no spans");
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service { name: "test", version: "0" };

    fn span() -> Span {
        let now = Instant::now();
        Span {
            context: TraceContext { trace: TraceId([1; 16]), span: SpanId(2), sampled: true },
            parent: None,
            name: "work".into(),
            kind: Kind::Internal,
            start: now,
            end: now,
            attributes: Vec::new(),
            error: None,
            state: String::new(),
        }
    }

    #[test]
    fn nothing_is_sent_without_an_endpoint() {
        let tracer = Tracer::open(&Traces::default(), &SERVICE).unwrap();
        assert!(!tracer.is_on());
        tracer.record(span());
        tracer.shut_down();
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_refused_by_name() {
        let traces = Traces { endpoint: "http://a b".into(), ..Traces::default() };
        let error = Tracer::open(&traces, &SERVICE).unwrap_err();
        assert!(format!("{error:#}").contains("http://a b"), "{error:#}");
    }

    /// Nobody takes a connection's data: neither recording nor the end waits for it.
    #[test]
    fn a_collector_that_never_answers_costs_no_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let traces = Traces {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            max_queued_spans: 64,
            max_batch_spans: 8,
            ..Traces::default()
        };
        let tracer = Tracer::open(&traces, &SERVICE).unwrap();
        let start = Instant::now();
        (0..10_000).for_each(|_| tracer.record(span()));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        tracer.shut_down();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[test]
    fn losses_are_told_once_a_minute_and_all_of_them() {
        let patient = Patient::new((), String::new());
        let told = [(5, 0), (7, 1), (1, 59), (2, 60), (4, 61), (3, 121)]
            .map(|(num_spans, second)| patient.lost(num_spans, Duration::from_secs(second)));
        assert_eq!(told, [Some(5), None, None, Some(10), None, Some(7)]);
    }
}
