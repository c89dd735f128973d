//! A browser without a window, which is told what to do over two pipes: Chromium's own protocol, a
//! JSON object and a zero byte each.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Chromium, where it is installed.
pub fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("AUTOGLM_CHROMIUM") {
        return Some(named.into());
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let paths = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&paths).flat_map(|dir| names.map(|name| dir.join(name)));
    found.find(|path| path.is_file())
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: String,
    next: u64,
    /// What the page complained of: exceptions, and what its policy forbids.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Begins at a URL, with a window of this size.
    pub fn open(program: &Path, url: &str, (width, height): (u32, u32)) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // It reads from the third file and writes to the fourth: those that the shell opens for it.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-pipe", "--enable-precise-memory-info"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut browser = Self {
            child,
            to,
            from: BufReader::new(from),
            session: String::new(),
            next: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Runtime", "Log", "Page"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        let size = json!(
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}
        );
        browser.call("Emulation.setDeviceMetricsOverride", size);
        browser.call("Page.navigate", json!({"url": url}));
        browser
    }

    /// Says something, and hears what comes of it.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let mut said = json!({"id": self.next, "method": method, "params": parameters});
        if !self.session.is_empty() {
            said["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{said}\0").as_bytes()).unwrap();
        loop {
            let mut answer = Vec::new();
            let num = self.from.read_until(0, &mut answer).unwrap();
            assert!(num > 0, "the browser has ended");
            let answer: Value = serde_json::from_slice(&answer[..num - 1]).unwrap();
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(answer.to_string()),
                Some("Log.entryAdded") if answer["params"]["entry"]["level"] == "error" => {
                    self.complaints.push(answer["params"]["entry"]["text"].to_string());
                }
                _ => {}
            }
        }
    }

    /// What an expression of JavaScript is worth on the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!(
            {"expression": expression, "returnByValue": true, "awaitPromise": true}
        );
        let said = self.call("Runtime.evaluate", asked);
        assert!(said["exceptionDetails"].is_null(), "{expression}: {said}");
        said["result"]["value"].clone()
    }

    /// The text of the first element of a selector; none where there is no such.
    pub fn text(&mut self, selector: &str) -> Option<String> {
        let found =
            self.eval(&format!("document.querySelector({selector:?})?.textContent ?? null"));
        found.as_str().map(str::to_owned)
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, expression: &str, timeout: Duration) -> Duration {
        let start = Instant::now();
        while self.eval(expression) != json!(true) {
            let text = self.text("main").unwrap_or_default();
            assert!(start.elapsed() < timeout, "never {expression} in:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
        start.elapsed()
    }

    /// Which theme the system has: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// A picture of the window, as PNG in base64.
    pub fn picture(&mut self) -> String {
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}));
        picture["data"].as_str().unwrap().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
