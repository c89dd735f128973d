//! Server-sent events, parsed from whatever pieces the network delivers.

use thiserror::Error;

/// Bytes of one event; a longer one is refused, so that no server can fill our memory.
pub(crate) const MAX_EVENT_BYTES: usize = 4 << 20;

/// Gathers bytes into events.
///
/// A piece may end anywhere: in a line, in a character, between `\r` and `\n`.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// The line that is still incomplete.
    line: Vec<u8>,
    /// The data lines of the event that is still incomplete.
    data: Vec<u8>,
    has_data: bool,
    after_carriage_return: bool,
}

/// Why a stream isn't one of events.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub(crate) enum SseError {
    /// More than `MAX_EVENT_BYTES` without the end of an event.
    #[error("an event of the stream is longer than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    /// Data that isn't text.
    #[error("the stream holds bytes that aren't UTF-8")]
    NotUtf8,
}

impl Parser {
    /// Takes the next piece of the stream and appends the data of each event that it completes.
    ///
    /// # Errors
    /// When an event is too long or not text. The parser is of no more use then.
    pub(crate) fn feed(&mut self, piece: &[u8], events: &mut Vec<String>) -> Result<(), SseError> {
        let mut rest = piece;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_carriage_return) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let text = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + self.data.len() + text.len() > MAX_EVENT_BYTES {
                return Err(SseError::TooLong);
            }
            self.line.extend_from_slice(text);
            let Some(end) = end else { break };
            self.after_carriage_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line(events)?;
        }
        Ok(())
    }

    /// The data of an event that lacks only the blank line after it, or the end of its last line,
    /// when the stream has ended.
    pub(crate) fn unfinished(mut self) -> Option<String> {
        let mut events = Vec::new();
        if !self.line.is_empty() {
            self.end_line(&mut events).ok()?;
        }
        self.end_line(&mut events).ok()?;
        events.pop()
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let data = std::mem::take(&mut self.data);
                events.push(String::from_utf8(data).map_err(|_| SseError::NotUtf8)?);
            }
            return Ok(());
        }
        // Comments, names, ids and retry times say nothing that we need.
        let value = match line.strip_prefix(b"data") {
            Some([b':', b' ', value @ ..]) | Some([b':', value @ ..]) => value,
            Some([]) => &[],
            _ => return Ok(()),
        };
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.has_data = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> (Vec<String>, Parser) {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, &mut events).unwrap();
        }
        (events, parser)
    }

    const STREAM: &str = ": hello\r\n\r\ndata: {\"a\":\"é\"}\r\n\r\nevent: x\ndata:one\n\
                          data: two\n\nid: 4\n\ndata\rdata: 3\r\rdata: [DONE]\n\n";

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let expected = ["{\"a\":\"é\"}", "one\ntwo", "\n3", "[DONE]"];
        let stream = STREAM.as_bytes();
        assert_eq!(parse(&[stream]).0, expected);
        for cut in 0..=stream.len() {
            assert_eq!(parse(&[&stream[..cut], &stream[cut..]]).0, expected, "cut at {cut}");
        }
        let bytes: Vec<_> = stream.chunks(1).collect();
        assert_eq!(parse(&bytes).0, expected);
    }

    #[test]
    fn an_event_without_its_blank_line_is_unfinished() {
        let (events, parser) = parse(&[b"data: [DONE]\n"]);
        assert!(events.is_empty());
        assert_eq!(parser.unfinished().as_deref(), Some("[DONE]"));
        assert_eq!(parse(&[b"data: [DONE]"]).1.unfinished().as_deref(), Some("[DONE]"));
        assert_eq!(parse(&[b"data: [DO"]).1.unfinished().as_deref(), Some("[DO"));
        assert_eq!(parse(&[b"data: [DONE]\n\n"]).1.unfinished(), None);
        assert_eq!(parse(&[b""]).1.unfinished(), None);
    }

    #[test]
    fn an_endless_event_and_bytes_that_are_no_text_are_refused() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let line = vec![b'x'; MAX_EVENT_BYTES];
        parser.feed(&line, &mut events).unwrap();
        assert_eq!(parser.feed(b"x", &mut events), Err(SseError::TooLong));
        let refused = Parser::default().feed(b"data: \xff\n\n", &mut events);
        assert_eq!(refused, Err(SseError::NotUtf8));
    }
}
