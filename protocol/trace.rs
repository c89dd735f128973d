//! Which trace a request belongs to, and under which of its spans: W3C Trace Context, level 1.

use std::fmt;

use bincode::{Decode, Encode};

/// Names a trace: one request's way through every process. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct TraceId(pub [u8; 16]);

/// Names a span: a piece of work in a trace. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct SpanId(pub u64);

/// A place in a trace: what is done there, or what is done for it elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct TraceContext {
    /// The same in all processes.
    pub trace: TraceId,
    /// The parent of whatever is done next.
    pub span: SpanId,
    /// Whether spans of this trace are kept.
    pub sampled: bool,
}

impl TraceContext {
    /// What a `traceparent` header says; `None` for whatever the specification calls invalid.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.splitn(5, '-');
        let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
        let more = parts.next();
        let version = hex::<1>(version)?[0];
        // Later versions may add parts, and mean the same by these.
        if version == 0xff || (version == 0 && more.is_some()) {
            return None;
        }
        let trace = hex::<16>(trace).filter(|trace| trace.iter().any(|byte| *byte != 0))?;
        let span = hex::<8>(span).map(u64::from_be_bytes).filter(|span| *span != 0)?;
        let sampled = hex::<1>(flags)?[0] & 1 == 1;
        Some(Self { trace: TraceId(trace), span: SpanId(span), sampled })
    }

    /// The same trace under another span.
    pub fn under(self, span: SpanId) -> Self {
        Self { span, ..self }
    }
}

/// As a `traceparent` header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl TraceId {
    /// Whether a trace that nobody has decided about is one of the share that is kept: a function
    /// of its id, so that every process decides alike. As OpenTelemetry's `TraceIdRatioBased`.
    pub fn is_of_share(self, ratio: f64) -> bool {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        // A share of 1 becomes 2^63, below which all are.
        low >> 1 < (ratio * (1u64 << 63) as f64) as u64
    }
}

impl SpanId {
    /// The `n`th after this one: a family of spans has one number drawn for it.
    pub fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n.into()).max(1))
    }
}

macro_rules! shown {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

shown!(TraceId SpanId);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// `N` bytes in lower-case hexadecimal; the specification allows no other.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// The examples of the specification, and what it says of versions to come.
    #[test]
    fn the_examples_of_the_specification() {
        let context = TraceContext::parse(EXAMPLE).unwrap();
        assert_eq!(context.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span.to_string(), "00f067aa0ba902b7");
        assert!(context.sampled);
        assert_eq!(context.to_string(), EXAMPLE);
        let (head, _) = EXAMPLE.rsplit_once('-').unwrap();
        let flags = |flags: &str| TraceContext::parse(&format!("{head}-{flags}"));
        assert!(!flags("00").unwrap().sampled);
        // Flags that this version doesn't know are ignored, and not sent on.
        assert_eq!(flags("ff").unwrap().to_string(), EXAMPLE);
        assert_eq!(TraceContext::parse(&EXAMPLE.replace("00-4b", "cc-4b")), Some(context));
        let later = format!("{}-what-the-future-will-be-like", EXAMPLE.replace("00-4b", "cc-4b"));
        assert_eq!(TraceContext::parse(&later), Some(context));
    }

    #[test]
    fn what_the_specification_calls_invalid() {
        let wrong = [
            String::new(),
            "00".into(),
            EXAMPLE.replace("00-4b", "ff-4b"),
            EXAMPLE.replace("00-4b", "0-4b"),
            EXAMPLE.replace("00-4b", "000-4b"),
            EXAMPLE.replace("4bf9", "4BF9"),
            EXAMPLE.replace("4bf9", "4bg9"),
            EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            EXAMPLE.replace("00f067aa0ba902b7", "00f067aa0ba902b"),
            EXAMPLE[..EXAMPLE.len() - 1].into(),
            EXAMPLE[..EXAMPLE.len() - 3].into(),
            format!("{EXAMPLE}-extra"),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE}.what"),
            format!(" {EXAMPLE}"),
            format!("{}.what", EXAMPLE.replace("00-4b", "cc-4b")),
        ];
        for header in wrong {
            assert_eq!(TraceContext::parse(&header), None, "{header:?}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_kept() {
        let traces = (0..10_000u64).map(|i| {
            let mut id = [7; 16];
            id[8..].copy_from_slice(&i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            TraceId(id)
        });
        let kept = |ratio| traces.clone().filter(|id| id.is_of_share(ratio)).count();
        assert_eq!((kept(0.0), kept(1.0)), (0, 10_000));
        assert!((80..=120).contains(&kept(0.01)), "{}", kept(0.01));
        assert!(TraceId([0xff; 16]).is_of_share(1.0));
    }

    proptest! {
        #[test]
        fn no_header_panics(header in ".{0,80}", damaged in "[0-9a-f-]{50,60}") {
            for header in [header, damaged] {
                let _ = TraceContext::parse(&header);
            }
        }

        #[test]
        fn every_context_comes_back(
            trace in any::<[u8; 16]>(),
            span in 1..=u64::MAX,
            sampled in any::<bool>(),
        ) {
            prop_assume!(trace != [0; 16]);
            let sent = TraceContext { trace: TraceId(trace), span: SpanId(span), sampled };
            prop_assert_eq!(TraceContext::parse(&sent.to_string()), Some(sent));
        }
    }
}
