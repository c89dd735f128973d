//! A server that takes rows: a request for each, or for so many at once, under a key by which one
//! that comes twice counts once.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rows::row::{Cells, text_of};

use super::{Sink, Writing};
use crate::http::Asked;

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a server may be out of order.
const MAX_AWAY: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct HttpSink {
    url: String,
    writing: Writing,
    /// Rows that wait until they are enough, the number of the first, and that behind the last.
    lines: Vec<Vec<u8>>,
    first: u64,
    next: u64,
    /// The value that stands for `{id}`.
    id: String,
    kept: u64,
}

impl HttpSink {
    pub(super) fn open(url: &str, kept: u64, writing: &Writing) -> Result<Self> {
        if url.contains("{id}") {
            ensure!(
                writing.id.is_some() && writing.rows_together == 1,
                "{{id}} in the address takes each row's own id: --id says where it stands, and \
                 rows are sent one by one"
            );
        }
        let (url, writing) = (url.to_owned(), writing.clone());
        Ok(Self { url, writing, lines: Vec::new(), first: 0, next: 0, id: String::new(), kept })
    }

    fn send(&mut self) -> Result<()> {
        let (body, content_type) = match &self.lines[..] {
            [] => return Ok(()),
            [line] if self.writing.rows_together == 1 => (line.clone(), "application/json"),
            lines => ([lines.join(&b'\n'), vec![b'\n']].concat(), "application/x-ndjson"),
        };
        let url = self.url.replace("{id}", &escape(&self.id));
        let asked = Asked {
            method: self.writing.method.clone(),
            url: &url,
            key: self.writing.key.as_deref(),
            idempotency_key: Some(format!("{}-{}", self.writing.job, self.first)),
            content_type,
            body: body.into(),
        };
        let (since, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let said = self.writing.wait(self.writing.http.ask(asked.clone(), LIMIT))?;
            let (why, wait) = match said {
                Ok(said) if (200..300).contains(&said.status) => break,
                Ok(said) => {
                    let text = String::from_utf8_lossy(&said.body[..said.body.len().min(200)]);
                    let why = format!("{url} answers {}: {}", said.status, text.trim());
                    if said.status < 500 && !matches!(said.status, 408 | 425 | 429) {
                        bail!("{why}");
                    }
                    (why, said.retry_after)
                }
                Err(crate::http::Lost::Never(cause)) => bail!("{cause}"),
                Err(lost) => (format!("{url}: {lost}"), None),
            };
            if since.elapsed() > MAX_AWAY {
                bail!("{why}, for {} s now", MAX_AWAY.as_secs());
            }
            // One that says 0 would be asked without any rest.
            let wait = wait.unwrap_or_default().max(pause).min(MAX_AWAY / 2);
            self.writing.wait(async { tokio::time::sleep(wait).await })?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.lines.clear();
        self.kept = self.next;
        Ok(())
    }
}

/// As a part of a path: all but what never needs it is written as `%20`.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

impl Sink for HttpSink {
    fn write(&mut self, row: u64, cells: Cells) -> Result<()> {
        if self.lines.is_empty() {
            self.first = row;
        }
        if let Some(id) = &self.writing.id {
            self.id = cells.get(id).map(text_of).unwrap_or_default().into_owned();
            // Rows of one address would each take the place of the one before.
            ensure!(
                !(self.id.is_empty() && self.url.contains("{id}")),
                "row {} has no {id:?}, which {{id}} in the address takes: --columns must keep it",
                row + 1
            );
        }
        self.lines.push(serde_json::to_vec(&cells)?);
        self.next = row + 1;
        if self.lines.len() >= self.writing.rows_together {
            self.send()?;
        }
        Ok(())
    }

    fn kept(&self) -> u64 {
        self.kept
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Trial, reading};

    #[test]
    fn rows_without_the_id_that_their_address_takes_are_not_sent() {
        let (runtime, _) = reading();
        let dir = tempfile::tempdir().unwrap();
        let trial = Trial { id: Some("id"), ..Trial::new(dir.path(), "in.csv", "out.csv") };
        let writing = trial.writing(&runtime);
        let mut sink = HttpSink::open("http://127.0.0.1:9/{id}", 0, &writing).unwrap();
        let cells = json!({"text": "kept"}).as_object().unwrap().clone();
        let said = sink.write(0, cells).unwrap_err().to_string();
        assert!(said.contains("\"id\", which {id} in the address"), "{said}");
    }
}
