//! `autoglm top`: what the page at `/ui` shows, in a terminal.

mod lines;

use std::io::Write;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use hyper::Method;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{DefaultTerminal, Frame};
use serde::Deserialize as _;
use serde_json::Value;

use crate::asking::{Server, block_on};
use crate::snapshot::Snapshot;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a key waits to be noticed, at most.
const KEY_TIMEOUT: Duration = Duration::from_millis(100);

/// How far an arrow goes sideways.
const COLUMNS: usize = 16;

/// Points and events that are looked at.
const NUM_POINTS: u64 = 60;
const NUM_EVENTS: u64 = 20;

/// Shows a running cluster in a terminal, once a second.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    server: Server,
    /// One look, and the end.
    #[arg(long)]
    once: bool,
    /// As the server says it, in JSON: a line for each look.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Looks and shows, until somebody presses q, or once.
    ///
    /// # Errors
    /// When the server can't be asked, unless it could be before; when there is no terminal.
    pub fn run(self, out: &mut impl Write) -> Result<()> {
        let mut seen = Seen::default();
        let first = seen.look(&self.server)?;
        match (self.once, self.json) {
            (true, true) => writeln!(out, "{first}")?,
            (true, false) => {
                let snapshot = parse(&first)?;
                for line in [lines::head(&snapshot)].into_iter().chain(lines::body(&snapshot)) {
                    writeln!(out, "{}", line.to_string().trim_end())?;
                }
            }
            (false, true) => {
                writeln!(out, "{first}")?;
                loop {
                    std::thread::sleep(INTERVAL);
                    // Whoever reads lines waits for the next one.
                    if let Ok(said) = seen.look(&self.server) {
                        writeln!(out, "{said}")?;
                        out.flush()?;
                    }
                }
            }
            (false, false) => {
                let view = View::new(parse(&first)?);
                let looks = watch(self.server, seen);
                let terminal = ratatui::try_init().context("there is no terminal; try --once")?;
                let shown = show(terminal, view, &looks);
                ratatui::restore();
                shown?;
            }
        }
        Ok(())
    }
}

fn parse(said: &Value) -> Result<Snapshot> {
    Snapshot::deserialize(said).context("the server's snapshot is of another kind")
}

/// What was told up to now: of what the server remembers, the newest is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    points: u64,
    events: u64,
}

impl Seen {
    fn look(&mut self, server: &Server) -> Result<Value> {
        let path = format!(
            "/v1/admin/snapshot?points={}&events={}",
            self.points.saturating_sub(NUM_POINTS),
            self.events.saturating_sub(NUM_EVENTS)
        );
        let said = block_on(server.ask(Method::GET, &path));
        // Another server may be there next, which begins to count anew.
        *self = Self::default();
        let said = said?;
        let newest = |list: &str| {
            let last = said[list].as_array().and_then(|list| list.last());
            last.and_then(|last| last["number"].as_u64()).unwrap_or(0)
        };
        *self = Self { points: newest("points"), events: newest("events") };
        Ok(said)
    }
}

/// Looks once a second, for as long as somebody wants to know.
fn watch(server: Server, mut seen: Seen) -> Receiver<Result<Snapshot>> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(INTERVAL);
            if tell.send(seen.look(&server).and_then(|said| parse(&said))).is_err() {
                return;
            }
        }
    });
    told
}

struct View {
    snapshot: Snapshot,
    heard: Instant,
    // Why nothing newer is.
    trouble: Option<String>,
    // The first line and column that are shown.
    top: usize,
    left: usize,
}

impl View {
    fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, heard: Instant::now(), trouble: None, top: 0, left: 0 }
    }

    fn hear(&mut self, said: Result<Snapshot>, now: Instant) {
        match said {
            Ok(snapshot) => {
                (self.snapshot, self.heard, self.trouble) = (snapshot, now, None);
            }
            Err(cause) => self.trouble = Some(format!("{cause:#}")),
        }
    }

    /// Scrolls, or jumps to a part. Whether that is the end.
    fn press(&mut self, key: KeyCode, page: usize) -> bool {
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Down | KeyCode::Char('j') => self.top += 1,
            KeyCode::Up | KeyCode::Char('k') => self.top = self.top.saturating_sub(1),
            KeyCode::Right | KeyCode::Char('l') => self.left += COLUMNS,
            KeyCode::Left | KeyCode::Char('h') => self.left = self.left.saturating_sub(COLUMNS),
            KeyCode::PageDown | KeyCode::Char(' ') => self.top += page,
            KeyCode::PageUp => self.top = self.top.saturating_sub(page),
            KeyCode::Home => (self.top, self.left) = (0, 0),
            KeyCode::Char(letter) => {
                let part = lines::PARTS.iter().find(|part| part.to_lowercase().starts_with(letter));
                let mut body = lines::body(&self.snapshot).into_iter();
                let place =
                    part.and_then(|part| body.position(|line| line.to_string().starts_with(part)));
                self.top = place.unwrap_or(self.top);
            }
            _ => {}
        }
        false
    }

    fn draw(&mut self, frame: &mut Frame<'_>, now: Instant) {
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
                .areas(frame.area());
        let lines = lines::body(&self.snapshot);
        self.top = self.top.min(lines.len().saturating_sub(usize::from(body.height)));
        let widest = lines.iter().map(Line::width).max().unwrap_or(0);
        self.left = self.left.min(widest.saturating_sub(usize::from(body.width)));
        let shown = lines.into_iter().skip(self.top).take(usize::from(body.height));
        let shown = Paragraph::new(shown.collect::<Vec<_>>());
        frame.render_widget(shown.scroll((0, self.left as u16)), body);
        frame.render_widget(lines::head(&self.snapshot), head);
        let silent = now.saturating_duration_since(self.heard).as_secs();
        let said = match &self.trouble {
            Some(cause) => lines::trouble(silent, cause),
            None => Line::from("q ends; arrows scroll; p n w r b e jump to a part"),
        };
        frame.render_widget(said, foot);
    }
}

fn show(
    mut terminal: DefaultTerminal,
    mut view: View,
    looks: &Receiver<Result<Snapshot>>,
) -> Result<()> {
    let mut is_new = true;
    loop {
        while let Ok(said) = looks.try_recv() {
            view.hear(said, Instant::now());
            is_new = true;
        }
        if std::mem::take(&mut is_new) {
            terminal.draw(|frame| view.draw(frame, Instant::now()))?;
        }
        if !event::poll(KEY_TIMEOUT)? {
            continue;
        }
        is_new = true;
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let is_interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            let page = usize::from(terminal.size()?.height).saturating_sub(3);
            if is_interrupt || view.press(key.code, page) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
