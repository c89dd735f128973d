//! A call of a tool, read while it is written.

use serde_json::Value;

use super::arguments::{self, JsonEnd, Kind, ObjectText};
use super::held::Held;
use super::{CallFormat, END_OF_CALL as CLOSING, Said, Tools};

/// Bytes of a tool's name. Longer ones are text that happens to follow a tag.
const MAX_NAME: usize = 256;

const OPENING: &str = "<tool_call>";
const KEY: &str = "<arg_key>";
const END_OF_KEY: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const END_OF_VALUE: &str = "</arg_value>";

#[derive(Debug)]
pub(super) enum Step {
    /// More text is needed.
    Waits,
    /// Another step may follow.
    Goes,
    /// The call is whole.
    Ended,
    /// It was no call: the text is all of it that was read.
    IsText(String),
}

/// A call under way.
#[derive(Clone, Debug)]
pub(super) enum Call {
    /// Up to the name, in the format of keys and values: what was read.
    Name(String),
    Keys(Keys),
    /// Up to the arguments, where the call is a JSON object.
    Head,
    /// The object, where it isn't in the usual order: what was read.
    Whole(String),
    /// In the arguments, JSON of the model; whether a tag closes the call.
    Arguments(JsonEnd, bool),
    /// After them, before the closing tag.
    Tail,
}

#[derive(Clone, Debug)]
pub(super) struct Keys {
    tool: String,
    object: ObjectText,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// Between arguments; the text may be a key whose tag was forgotten.
    Between(String),
    Key(String),
    /// After the key, and what was read since: it is the value, if that has no tag of its own.
    Before(String, String),
    Value {
        key: String,
        kind: Kind,
        is_repeated: bool,
        text: String,
    },
}

impl Call {
    /// A call whose opening tag was read.
    pub(super) fn new(format: CallFormat) -> Self {
        match format {
            CallFormat::KeysAndValues => Self::Name(String::new()),
            CallFormat::Json => Self::Head,
            CallFormat::NameThenJson => Self::arguments_only(),
        }
    }

    /// A call whose name was read, and that nothing closes but the end of its arguments.
    pub(super) fn arguments_only() -> Self {
        Self::Arguments(JsonEnd::default(), false)
    }

    pub(super) fn step(
        &mut self,
        held: &mut Held,
        tools: &Tools,
        must_exist: bool,
        said: &mut Vec<Said>,
    ) -> Step {
        match self {
            Self::Name(read) => {
                const TAGS: [&str; 6] = ["\n", KEY, CLOSING, END_OF_KEY, END_OF_VALUE, OPENING];
                let (text, tag) = held.until(&TAGS);
                read.push_str(&text);
                let name = read.trim();
                let tag = match tag {
                    // A line end before the name.
                    Some(0) if name.is_empty() => {
                        read.push('\n');
                        return Step::Goes;
                    }
                    Some(tag) => TAGS[tag],
                    None if read.len() > MAX_NAME => "",
                    None => return Step::Waits,
                };
                if tag == OPENING {
                    // It may begin another call, be this one what it will.
                    held.put_back(tag);
                }
                let named = match tag {
                    "" => None,
                    // The tag between name and key is missing.
                    // As long as where it comes token by token.
                    END_OF_KEY if read.len() <= MAX_NAME => begins_with_name(name, tools),
                    OPENING | END_OF_VALUE => is_name(name, tools, true).then_some((name, "")),
                    _ => is_name(name, tools, must_exist).then_some((name, "")),
                };
                let Some((name, key)) = named else {
                    let tag = if tag == OPENING { "" } else { tag };
                    return Step::IsText(OPENING.to_owned() + read + tag);
                };
                said.push(Said::Call(name.to_owned()));
                if tag == CLOSING {
                    said.push(Said::Arguments("{}".into()));
                    return Step::Ended;
                }
                let place = match tag {
                    KEY => Place::Key(String::new()),
                    END_OF_KEY => Place::Before(key.to_owned(), String::new()),
                    _ => Place::Between(String::new()),
                };
                let object = ObjectText::default();
                *self = Self::Keys(Keys { tool: name.to_owned(), object, place });
                Step::Goes
            }
            Self::Keys(keys) => keys.step(held, tools, said),
            Self::Head => match head(held.as_str()) {
                Head::Unfinished => Step::Waits,
                Head::Other => {
                    *self = Self::Whole(String::new());
                    Step::Goes
                }
                Head::Name { name, length } => {
                    let read = held.take(length);
                    if !is_name(&name, tools, must_exist) {
                        return Step::IsText(OPENING.to_owned() + &read);
                    }
                    said.push(Said::Call(name));
                    *self = Self::Arguments(JsonEnd::default(), true);
                    Step::Goes
                }
            },
            Self::Whole(read) => {
                let (text, tag) = held.until(&[CLOSING]);
                read.push_str(&text);
                if tag.is_none() {
                    return Step::Waits;
                }
                match whole(read).filter(|(name, _)| is_name(name, tools, must_exist)) {
                    Some((name, arguments)) => {
                        said.extend([Said::Call(name), Said::Arguments(arguments)]);
                        Step::Ended
                    }
                    None => Step::IsText(OPENING.to_owned() + read + CLOSING),
                }
            }
            Self::Arguments(end, closes) => {
                let found = end.find(held.as_str());
                let length = found.unwrap_or(held.as_str().len());
                if length > 0 {
                    said.push(Said::Arguments(held.take(length)));
                }
                match (found, *closes) {
                    (None, _) => Step::Waits,
                    (Some(_), false) => Step::Ended,
                    (Some(_), true) => {
                        *self = Self::Tail;
                        Step::Goes
                    }
                }
            }
            Self::Tail => match held.until(&[CLOSING]).1 {
                Some(_) => Step::Ended,
                None => Step::Waits,
            },
        }
    }

    /// The answer has ended in the call, with `rest` unread; what of it was no call.
    pub(super) fn finish(self, rest: String, tools: &Tools, said: &mut Vec<Said>) -> String {
        match self {
            Self::Name(read) => OPENING.to_owned() + &read + &rest,
            Self::Head => Self::Whole(String::new()).finish(rest, tools, said),
            // The closing tag may be what the answer had no tokens for, or an end took its place.
            Self::Whole(read) => match whole(&(read.clone() + &rest)) {
                Some((name, arguments)) if is_name(&name, tools, true) => {
                    said.extend([Said::Call(name), Said::Arguments(arguments)]);
                    String::new()
                }
                _ => OPENING.to_owned() + &read + &rest,
            },
            Self::Keys(keys) => {
                keys.finish(&rest, said);
                String::new()
            }
            Self::Arguments(..) => {
                if !rest.is_empty() {
                    said.push(Said::Arguments(rest));
                }
                String::new()
            }
            Self::Tail => String::new(),
        }
    }
}

impl Keys {
    fn step(&mut self, held: &mut Held, tools: &Tools, said: &mut Vec<Said>) -> Step {
        match &mut self.place {
            Place::Between(read) => {
                if held.as_str().starts_with(OPENING) {
                    return self.opened_again(held, said);
                }
                let (text, tag) = held.until(&[KEY, CLOSING, END_OF_KEY, OPENING]);
                read.push_str(&text);
                match tag {
                    None => return Step::Waits,
                    Some(0) => self.place = Place::Key(String::new()),
                    Some(1) => {
                        said.push(Said::Arguments(self.object.end().into()));
                        return Step::Ended;
                    }
                    Some(2) => self.place = Place::Before(read.trim().to_owned(), String::new()),
                    Some(_) => held.put_back(OPENING),
                }
            }
            Place::Key(read) => {
                let (text, tag) = held.until(&[END_OF_KEY]);
                read.push_str(&text);
                if tag.is_none() {
                    return Step::Waits;
                }
                self.place = Place::Before(read.trim().to_owned(), String::new());
            }
            Place::Before(key, read) => {
                let (text, tag) = held.until(&[VALUE, CLOSING, END_OF_VALUE]);
                read.push_str(&text);
                match tag {
                    None => return Step::Waits,
                    Some(1) if read.trim().is_empty() => {
                        said.push(Said::Arguments(self.object.end().into()));
                        return Step::Ended;
                    }
                    Some(0) => {}
                    // The tag before the value is missing, or both are.
                    Some(tag) => {
                        if tag == 1 {
                            held.put_back(CLOSING);
                        }
                        held.put_back(END_OF_VALUE);
                        held.put_back(read.strip_prefix('\n').unwrap_or(read));
                    }
                }
                let kind = arguments::kind(tools.get(&self.tool), key);
                let begins = self.object.key(key);
                let is_repeated = begins.is_none();
                let key = std::mem::take(key);
                let quote = if kind == Kind::Text { "\"" } else { "" };
                said.extend(begins.map(|begins| Said::Arguments(begins + quote)));
                let text = String::new();
                self.place = Place::Value { key, kind, is_repeated, text };
            }
            Place::Value { key, kind, is_repeated, text } => {
                let (more, tag) = held.until(&[END_OF_VALUE]);
                let json = match kind {
                    Kind::Text => arguments::escaped(&more) + if tag.is_some() { "\"" } else { "" },
                    Kind::Json => {
                        text.push_str(&more);
                        let whole = |_| arguments::json(tools.get(&self.tool), key, text);
                        tag.map(whole).unwrap_or_default()
                    }
                };
                if !json.is_empty() && !*is_repeated {
                    said.push(Said::Arguments(json));
                }
                if tag.is_none() {
                    return Step::Waits;
                }
                self.place = Place::Between(String::new());
            }
        }
        Step::Goes
    }

    /// A tag that opens a call, in front of what is held: in the place of a key's, or behind a call
    /// that nothing has closed.
    fn opened_again(&mut self, held: &mut Held, said: &mut Vec<Said>) -> Step {
        let text = &held.as_str()[OPENING.len()..];
        let tags = ["\n", KEY, CLOSING, END_OF_KEY, VALUE, END_OF_VALUE, OPENING];
        let ends = tags.iter().filter_map(|tag| Some((text.find(tag)?, *tag)));
        let end = ends.min().filter(|(at, _)| *at <= MAX_NAME);
        if end.is_none() && text.len() <= MAX_NAME + END_OF_VALUE.len() {
            return Step::Waits;
        }
        if let Some((1.., END_OF_KEY)) = end {
            held.take(OPENING.len());
            self.place = Place::Key(String::new());
            return Step::Goes;
        }
        said.push(Said::Arguments(self.object.end().into()));
        Step::Ended
    }

    /// Between arguments an end of the answer is as good as a closing tag. In the middle of a value
    /// it is what was asked for: an answer that was cut off.
    fn finish(self, rest: &str, said: &mut Vec<Said>) {
        let json = match self.place {
            Place::Between(_) | Place::Key(_) | Place::Before(..) => self.object.end().to_owned(),
            Place::Value { is_repeated: true, .. } => return,
            Place::Value { kind: Kind::Text, .. } => arguments::escaped(rest),
            Place::Value { text, .. } => text + rest,
        };
        if !json.is_empty() {
            said.push(Said::Arguments(json));
        }
    }
}

/// A name that a tool can have, or has.
fn is_name(name: &str, tools: &Tools, must_exist: bool) -> bool {
    let is_sign = |sign: char| sign.is_ascii_alphanumeric() || "_-.:/".contains(sign);
    let could_exist = !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(is_sign);
    tools.contains_key(name) || (could_exist && !must_exist)
}

/// The tool whose name a text begins with, the longest of several, and what follows it.
fn begins_with_name<'a>(text: &'a str, tools: &Tools) -> Option<(&'a str, &'a str)> {
    let names = tools.keys().filter(|name| text.starts_with(name.as_str()));
    let (name, rest) = text.split_at(names.map(String::len).max()?);
    let rest = rest.trim();
    (!rest.is_empty()).then_some((name, rest))
}

/// It is too early to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MayFollow;

/// The tool's name that an answer begins with, if a JSON object follows it.
pub(super) fn find_name(text: &str, tools: &Tools) -> Result<Option<String>, MayFollow> {
    let mut is_open = text.is_empty();
    for name in tools.keys() {
        is_open |= name.starts_with(text);
        let Some(rest) = text.strip_prefix(name.as_str()) else { continue };
        let rest = rest.trim_start();
        if rest.starts_with('{') {
            return Ok(Some(name.clone()));
        }
        is_open |= rest.is_empty();
    }
    if is_open { Err(MayFollow) } else { Ok(None) }
}

enum Head {
    /// It may become any of the others.
    Unfinished,
    /// `{"name": NAME, "arguments":`, so many bytes, and an object follows.
    Name {
        name: String,
        length: usize,
    },
    Other,
}

/// The beginning of a call that is a JSON object.
fn head(text: &str) -> Head {
    let mut rest = text;
    let mut name = None;
    for sign in ["{", "name", ":", "", ",", "arguments", ":"] {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Head::Unfinished;
        }
        if let "{" | ":" | "," = sign {
            let Some(after) = rest.strip_prefix(sign) else { return Head::Other };
            rest = after;
            continue;
        }
        let Some(end) = string_end(rest) else {
            let may_end = rest.starts_with('"') && rest.len() <= MAX_NAME;
            return if may_end { Head::Unfinished } else { Head::Other };
        };
        let Ok(text) = serde_json::from_str::<String>(&rest[..end]) else { return Head::Other };
        rest = &rest[end..];
        match sign {
            "" => name = Some(text),
            "arguments" if text == "parameters" => {}
            _ if text == sign => {}
            _ => return Head::Other,
        }
    }
    rest = rest.trim_start();
    match (rest.chars().next(), name) {
        (None, _) => Head::Unfinished,
        (Some('{'), Some(name)) => Head::Name { name, length: text.len() - rest.len() },
        _ => Head::Other,
    }
}

/// Where the JSON string ends that `text` begins with.
fn string_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if at > 0 && !escaped => return Some(at + 1),
            _ if at == 0 && byte != b'"' => return None,
            _ => escaped = byte == b'\\' && !escaped,
        }
    }
    None
}

/// Name and arguments of a call that is a whole JSON object, its fields in any order.
fn whole(text: &str) -> Option<(String, String)> {
    let call: Value = serde_json::from_str(text.trim()).ok()?;
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::Object(arguments)) => Value::Object(arguments.clone()).to_string(),
        // Some write the object as text.
        Some(Value::String(text)) => {
            let arguments: Value = serde_json::from_str(text).ok()?;
            arguments.is_object().then(|| arguments.to_string())?
        }
        Some(_) => return None,
    };
    Some((name, arguments))
}
