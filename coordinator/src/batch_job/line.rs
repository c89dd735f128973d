//! A line of a job: what it asks, as OpenAI writes it, and what is written of it at the end.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::openai::{ApiError, Style};

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asks {
    /// How whoever handed it in calls it.
    pub custom_id: String,
    /// The body of the request.
    pub body: String,
}

/// Why a line is no request. It is in the file of errors, with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// As far as it can be read.
    pub custom_id: Option<String>,
    /// One word.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// The field.
    pub param: Option<&'static str>,
}

/// The routes that lines may name.
pub(crate) const ENDPOINTS: [(&str, Style); 2] =
    [("/v1/chat/completions", Style::Chat), ("/v1/completions", Style::Completion)];

/// How a route answers.
pub(crate) fn style_of(endpoint: &str) -> Option<Style> {
    ENDPOINTS.iter().find(|(name, _)| *name == endpoint).map(|(_, style)| *style)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    stream: Option<bool>,
}

impl Asks {
    /// Reads a line of a job for this route.
    ///
    /// # Errors
    /// When it isn't a request for it.
    pub(crate) fn parse(line: &[u8], endpoint: &str) -> Result<Self, Wrong> {
        let wrong = |code, param, message: String| Wrong { custom_id: None, code, message, param };
        let text = std::str::from_utf8(line)
            .map_err(|_| wrong("invalid_json_line", None, "the line isn't UTF-8".into()))?;
        let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|cause| {
            let message = match cause.is_data() {
                true => "the line must be a JSON object".to_owned(),
                false => format!("the line isn't JSON: {cause}"),
            };
            wrong("invalid_json_line", None, message)
        })?;
        let string = |raw: Option<&RawValue>| {
            raw.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
        };
        let custom_id = string(envelope.custom_id).filter(|id| !id.is_empty());
        let Some(custom_id) = custom_id else {
            let message = "custom_id must be a string, not empty: it is how the answer is found";
            return Err(wrong("missing_custom_id", Some("custom_id"), message.into()));
        };
        let named = |code, param, message| Wrong {
            custom_id: Some(custom_id.clone()),
            ..wrong(code, Some(param), message)
        };
        if string(envelope.method).as_deref() != Some("POST") {
            return Err(named("invalid_method", "method", "method must be POST".into()));
        }
        match string(envelope.url) {
            Some(url) if url == endpoint => {}
            Some(url) => {
                let shown: String = url.chars().take(64).collect();
                let message = format!("url must be {endpoint}, as the batch's, not {shown}");
                return Err(named("invalid_url", "url", message));
            }
            None => return Err(named("invalid_url", "url", format!("url must be {endpoint}"))),
        }
        let body = envelope.body.map(RawValue::get).filter(|body| body.starts_with('{'));
        let Some(body) = body else {
            return Err(named("invalid_body", "body", "body must be an object".into()));
        };
        // What else is wrong with it is said when its turn comes.
        if serde_json::from_str(body).is_ok_and(|body: Body| body.stream == Some(true)) {
            let message = "stream must not be true: the answer is in a file".to_owned();
            return Err(named("stream_unsupported", "body.stream", message));
        }
        Ok(Self { custom_id, body: body.to_owned() })
    }
}

#[derive(Serialize)]
struct Written<'a> {
    id: String,
    custom_id: Option<&'a str>,
    response: Option<Response<'a>>,
    error: Option<Failure<'a>>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: String,
    body: &'a RawValue,
}

#[derive(Serialize)]
struct Failure<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineId {
    /// The job's number.
    pub batch: i64,
    /// From 1 on.
    pub line: u32,
}

impl LineId {
    /// In the file of answers: the body of a response.
    pub(crate) fn answered(self, custom_id: &str, body: String) -> String {
        self.responded(custom_id, 200, body)
    }

    /// In the file of errors: the request failed.
    pub(crate) fn failed(self, custom_id: &str, error: &ApiError) -> String {
        self.responded(custom_id, error.status, error.body().to_string())
    }

    /// In the file of errors: the line is none.
    pub(crate) fn wrong(self, wrong: &Wrong) -> String {
        let Wrong { custom_id, code, message, param } = wrong;
        let message = format!("line {}: {message}", self.line);
        let error = Failure { code, message: &message, param: *param, line: Some(self.line) };
        self.text(custom_id.as_deref(), None, Some(error))
    }

    /// In the file of errors: its job has ended before it.
    pub(crate) fn ended(self, custom_id: Option<&str>, code: &str, message: &str) -> String {
        self.text(custom_id, None, Some(Failure { code, message, param: None, line: None }))
    }

    fn responded(self, custom_id: &str, status_code: u16, body: String) -> String {
        let body = RawValue::from_string(body).expect("our own JSON");
        let request_id = format!("req_{:08x}{:08x}", self.batch, self.line);
        let response = Response { status_code, request_id, body: &body };
        self.text(Some(custom_id), Some(response), None)
    }

    fn text(
        self,
        custom_id: Option<&str>,
        response: Option<Response<'_>>,
        error: Option<Failure<'_>>,
    ) -> String {
        let id = format!("batch_req_{:08x}{:08x}", self.batch, self.line);
        let written = Written { id, custom_id, response, error };
        serde_json::to_string(&written).expect("it is written to memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const CHAT: &str = "/v1/chat/completions";

    fn line(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut line = json!({
            "custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m", "seed": 1},
        });
        change(&mut line);
        line.to_string().into_bytes()
    }

    #[test]
    fn a_line_is_a_request_with_its_body_as_it_came() {
        let asks = Asks::parse(&line(|_| {}), CHAT).unwrap();
        assert_eq!(asks.custom_id, "a");
        assert_eq!(asks.body, "{\"model\":\"m\",\"seed\":1}");
        // What isn't ours to know is passed over.
        let more = line(|line| line["comment"] = json!("x"));
        assert!(Asks::parse(&more, CHAT).is_ok());
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_number_and_what_would_be_right() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str, &str); 9] = [
            (|it| drop(it.as_object_mut().unwrap().remove("custom_id")), "missing_custom_id", ""),
            (|it| it["custom_id"] = json!(5), "missing_custom_id", "must be a string"),
            (|it| it["custom_id"] = json!(""), "missing_custom_id", "must be a string"),
            (|it| it["method"] = json!("GET"), "invalid_method", "must be POST"),
            (|it| it["url"] = json!("/v1/completions"), "invalid_url", CHAT),
            (|it| it["url"] = json!(null), "invalid_url", CHAT),
            (|it| it["body"] = json!([1]), "invalid_body", "must be an object"),
            (|it| drop(it.as_object_mut().unwrap().remove("body")), "invalid_body", "object"),
            (|it| it["body"]["stream"] = json!(true), "stream_unsupported", "must not be true"),
        ];
        for (change, code, said) in cases {
            let wrong = Asks::parse(&line(change), CHAT).unwrap_err();
            assert_eq!(wrong.code, code);
            assert!(wrong.message.contains(said), "{wrong:?}");
        }
        for (text, said) in [
            (&b"{\"custom_id\":"[..], "isn't JSON"),
            (b"[]", "JSON object"),
            (b"7", "JSON object"),
            (b"\xff\xfe{\0", "isn't UTF-8"),
            (b"{} {}", "isn't JSON"),
        ] {
            let wrong = Asks::parse(text, CHAT).unwrap_err();
            assert_eq!(wrong.code, "invalid_json_line");
            assert!(wrong.message.contains(said), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_written_is_openais_form() {
        let place = LineId { batch: 3, line: 17 };
        let parsed = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        let answered = parsed(place.answered("a", "{\"x\":1}".into()));
        let id = "batch_req_0000000300000011";
        assert_eq!(
            answered,
            json!({
                "id": id, "custom_id": "a", "error": null,
                "response": {
                    "status_code": 200, "request_id": "req_0000000300000011", "body": {"x": 1},
                },
            })
        );
        let failed = parsed(place.failed("a", &ApiError::no_model("x", "m")));
        assert_eq!(failed["response"]["status_code"], 404);
        assert_eq!(failed["response"]["body"]["error"]["code"], "model_not_found");
        assert_eq!(failed["error"], Value::Null);
        let wrong = Asks::parse(b"{", CHAT).unwrap_err();
        let wrong = parsed(place.wrong(&wrong));
        assert_eq!((&wrong["custom_id"], &wrong["response"]), (&Value::Null, &Value::Null));
        assert_eq!((&wrong["error"]["line"], &wrong["id"]), (&json!(17), &json!(id)));
        assert!(wrong["error"]["message"].as_str().unwrap().starts_with("line 17: "));
        let ended = parsed(place.ended(Some("a"), "batch_expired", "too late"));
        assert_eq!(ended["error"], json!({"code": "batch_expired", "message": "too late"}));
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = Asks::parse(&bytes, CHAT);
        }
    }
}
