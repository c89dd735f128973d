//! A page as a browser makes of it: Chromium opens what a sweep wrote, runs its script without a
//! complaint, and holds every plot with its data.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Time that a browser on a busy machine may take.
const BROWSER: Duration = Duration::from_secs(120);

/// A mock server of its own process and its address; it is killed when dropped.
async fn mock() -> (Child, String) {
    let mut mock = Command::new(env!("CARGO_BIN_EXE_autoglm-bench"))
        .args(["mock", "--port", "0", "--ttft", "30ms", "--itl", "5ms", "--tokens", "8"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(mock.stdout.take().unwrap()).read_line(&mut url).await.unwrap();
    (mock, url.trim().to_string())
}

/// The document after its script ran, and what the browser wrote to its log.
async fn opened(chromium: &str, page: &Path) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Command::new(chromium);
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .kill_on_drop(true);
    let ended = tokio::time::timeout(BROWSER, browser.output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&ended.stdout), text(&ended.stderr))
}

/// The part of a document from `start` to the next `end`.
fn part<'a>(document: &'a str, start: &str, end: &str) -> &'a str {
    let begin = document.find(start).unwrap_or_else(|| panic!("there is no {start}"));
    let rest = &document[begin..];
    &rest[..rest.find(end).unwrap_or(rest.len())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_finds_every_plot_of_a_sweep_with_its_data() {
    let Ok(chromium) = std::env::var("AUTOGLM_CHROMIUM") else {
        println!("skipped: a page in a browser: AUTOGLM_CHROMIUM names no Chromium");
        return;
    };
    let (_mock, url) = mock().await;
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("report.html");
    let ended = Command::new(env!("CARGO_BIN_EXE_autoglm-bench"))
        .args(["load", "--url", &url, "--sweep-concurrency", "1,2,4", "--requests", "12"])
        .args(["--slo", "ttft=60s", "--max-tokens", "8", "--seed", "1"])
        .args(["--html".as_ref(), page.as_os_str()])
        .output()
        .await
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let (document, log) = opened(&chromium, &page).await;
    assert!(!log.contains(":CONSOLE"), "the page complained: {log}");
    assert!(document.contains("<div id=\"tip\""), "the page's script ran to its beginning");
    assert!(!document.contains("<title>concurrency"), "and to its end: it took the tooltips over");

    let figures: Vec<&str> = document.split("<figure").skip(1).collect();
    // Six against the load, four percentile curves, four over time for each of three runs.
    assert_eq!(figures.len(), 6 + 4 + 3 * 4);
    for figure in &figures {
        let figure = figure.split("</figure>").next().unwrap();
        let caption = part(figure, "<figcaption>", "</figcaption>");
        let paths = figure.matches("<path d=\"M").count();
        let points = figure.matches("<circle class=\"hit").count();
        assert!(paths >= 1 && points >= paths, "{caption}: {paths} lines, {points} points");
    }
    let percentiles = part(&document, "<section id=\"percentiles\"", "</section>");
    for name in ["concurrency 1", "concurrency 2", "concurrency 4"] {
        let lines = percentiles.matches(&format!("data-name=\"{name}\"")).count();
        assert_eq!(lines, 4, "{name} in each of the percentile plots");
    }
    let load = part(&document, "<section class=\"load\"", "</section>");
    let p99 = part(load, "data-name=\"p99\"", "</g>");
    assert_eq!(p99.matches("<circle").count(), 3, "a point for each concurrency");
    assert!(document.contains("Answers not verified"), "nothing verified these answers");
    assert!(!document.contains("nothing was measured"), "every plot shows something");
}
