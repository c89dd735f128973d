//! A template in pieces: text, tags with their tokens, and raw blocks.

/// A part of a template, in order.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    /// Text and comments.
    Text(&'a str),
    /// `{{ ... }}` or `{% ... %}`.
    Tag(Tag<'a>),
    /// From `{% raw` over `%}` to the end of the block.
    Raw {
        /// As far as the name.
        open: &'a str,
        /// The end of the tag.
        close: &'a str,
        /// What follows, `endraw` included.
        rest: &'a str,
    },
}

impl<'a> Piece<'a> {
    pub(super) fn tag(&self) -> Option<&Tag<'a>> {
        match self {
            Self::Tag(tag) => Some(tag),
            _ => None,
        }
    }
}

/// A tag, without its brackets and their signs for white space.
#[derive(Debug)]
pub(super) struct Tag<'a> {
    pub(super) open: &'a str,
    pub(super) source: &'a str,
    pub(super) close: &'a str,
    pub(super) tokens: Vec<Token<'a>>,
}

impl<'a> Tag<'a> {
    pub(super) fn statement(&self) -> Option<&'a str> {
        self.tokens.first().filter(|_| self.open.starts_with("{%")).map(|token| token.text)
    }
}

/// What is at these bytes of the tag's source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) start: usize,
    pub(super) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Number,
    Text,
    Sign,
}

/// The pieces of a template. One that is malformed ends with what is, for others to refuse.
pub(super) fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    let mut text = 0;
    while let Some(found) = rest[text..].find('{') {
        let at = text + found;
        let tail = &rest[at..];
        if let Some(comment) = tail.strip_prefix("{#") {
            text = comment.find("#}").map_or(rest.len(), |end| at + end + 4);
        } else if tail.starts_with("{{") || tail.starts_with("{%") {
            let Some(tag) = tag(tail) else { break };
            pieces.push(Piece::Text(&rest[..at]));
            let length = tag.open.len() + tag.source.len() + tag.close.len();
            rest = &tail[length..];
            text = 0;
            if tag.statement() == Some("raw") {
                let (before, after) = rest.split_at(raw_end(rest));
                let open = &tail[..tag.open.len() + tag.source.len()];
                pieces.push(Piece::Raw { open, close: tag.close, rest: before });
                rest = after;
            } else {
                pieces.push(Piece::Tag(tag));
            }
        } else {
            text = at + 1;
        }
    }
    pieces.push(Piece::Text(rest));
    pieces
}

fn raw_end(rest: &str) -> usize {
    let mut from = 0;
    while let Some(found) = rest[from..].find("{%") {
        let at = from + found;
        let inner = rest[at + 2..].trim_start_matches(['-', '+']).trim_start();
        if inner
            .strip_prefix("endraw")
            .is_some_and(|end| end.trim_start().trim_start_matches(['-', '+']).starts_with("%}"))
        {
            return rest[at..].find("%}").map_or(rest.len(), |end| at + end + 2);
        }
        from = at + 2;
    }
    rest.len()
}

/// The tag that this begins with, if it ends.
fn tag(text: &str) -> Option<Tag<'_>> {
    let close = if text.starts_with("{{") { "}}" } else { "%}" };
    let signed = text[2..].starts_with(['-', '+']);
    let (open, inner) = text.split_at(if signed { 3 } else { 2 });
    let (mut tokens, mut at, mut depth) = (Vec::new(), 0, 0usize);
    loop {
        let tail = &inner[at..];
        let next = tail.chars().next()?;
        let unsigned = tail.strip_prefix(['-', '+']).unwrap_or(tail);
        if unsigned.starts_with(close) && (depth == 0 || close == "%}") {
            let end = tail.len() - unsigned.len() + 2;
            return Some(Tag { open, source: &inner[..at], close: &tail[..end], tokens });
        }
        if next.is_whitespace() {
            at += next.len_utf8();
            continue;
        }
        let (kind, length) = token(tail, next)?;
        let text = &tail[..length];
        match text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        tokens.push(Token { kind, text, start: at, end: at + length });
        at += length;
    }
}

/// The kind and the bytes of the token that a text begins with.
fn token(text: &str, first: char) -> Option<(Kind, usize)> {
    let until = |is_other: &dyn Fn(char) -> bool| text.find(is_other).unwrap_or(text.len());
    Some(match first {
        '\'' | '"' => {
            let mut is_escaped = false;
            let end = text.char_indices().skip(1).find(|(_, c)| {
                let is_end = *c == first && !is_escaped;
                is_escaped = *c == '\\' && !is_escaped;
                is_end
            });
            (Kind::Text, end?.0 + 1)
        }
        c if c.is_ascii_digit() => (Kind::Number, number(text.as_bytes())),
        c if c.is_alphanumeric() || c == '_' => {
            (Kind::Name, until(&|c| !(c.is_alphanumeric() || c == '_')))
        }
        _ => {
            let two = ["**", "//", "==", "!=", ">=", "<="];
            let length = if two.iter().any(|sign| text.starts_with(sign)) { 2 } else { 1 };
            (Kind::Sign, if length == 2 { 2 } else { first.len_utf8() })
        }
    })
}

fn number(text: &[u8]) -> usize {
    let is_decimal = !text.starts_with(b"0x") && !text.starts_with(b"0X");
    let digit = |at: usize| text.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let is_part = byte.is_ascii_alphanumeric()
            || byte == b'_'
            || byte == b'.' && digit(at + 1) && is_decimal
            || matches!(byte, b'+' | b'-') && matches!(text[at - 1], b'e' | b'E') && is_decimal;
        if !is_part {
            break;
        }
        at += 1;
    }
    at
}
