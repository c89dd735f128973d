use super::*;
use crate::snapshot::{
    Concern, EventKind, Fill, Group, Happened, Level, Point, ShownNode, ShownPipeline, ShownStage,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn snapshot() -> Snapshot {
    let stage = ShownStage {
        node: "a1".into(),
        layers: [0, 12],
        state: "serving".into(),
        ..ShownStage::default()
    };
    let point = |number| Point {
        number,
        took_ms: 10_000,
        first_token_ms: Some([120.0, 250.0, 1500.0]),
        generated_tokens: 2000,
        ..Point::default()
    };
    let group = Group { tenant: "anna".into(), num: 7, why: "9 run".into(), ..Group::default() };
    let lost = Happened {
        node: "a2".into(),
        kind: EventKind::Lost,
        text: "silent".into(),
        ..Happened::default()
    };
    Snapshot {
        model: "glm".into(),
        ready: true,
        concerns: vec![Concern { level: Level::Warn, what: "7 wait".into(), hint: "9 run".into() }],
        load: Fill { running: 4, waiting: 7, used_blocks: 3, blocks: 4 },
        pipelines: vec![ShownPipeline {
            state: "serving".into(),
            stages: vec![stage],
            ..ShownPipeline::default()
        }],
        nodes: (0..100)
            .map(|it| ShownNode { node: format!("node-{it}"), ..ShownNode::default() })
            .collect(),
        queue: vec![group],
        points: (0..3).map(point).collect(),
        events: vec![lost],
        ..Snapshot::default()
    }
}

fn screen(view: &mut View, (width, height): (u16, u16), now: Instant) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame, now)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let text: Vec<_> = buffer.content().iter().map(|cell| cell.symbol().to_owned()).collect();
    text.chunks(width.into()).map(|line| line.concat() + "\n").collect()
}

#[test]
fn a_screen_tells_what_the_page_does() {
    let mut view = View::new(snapshot());
    let shown = screen(&mut view, (140, 40), Instant::now());
    for expected in [
        "AutoGLM glm",
        "serving",
        "! 7 wait  9 run",
        "120 ms  p90 250 ms, p99 1.50 s",
        "200",
        "75 %",
        "Pipelines  1 of 1 serve",
        "0..12",
        "node-0",
        "q ends",
    ] {
        assert!(shown.contains(expected), "no {expected} in\n{shown}");
    }
    // What doesn't fit is scrolled to, or jumped to.
    assert!(!shown.contains("silent"));
    assert!(!view.press(KeyCode::Char('e'), 30));
    assert!(screen(&mut view, (140, 40), Instant::now()).contains("lost        a2"));
    view.press(KeyCode::Char('w'), 30);
    assert!(screen(&mut view, (140, 40), Instant::now()).contains("anna"));
    view.press(KeyCode::Home, 30);
    assert_eq!(screen(&mut view, (140, 40), Instant::now()), shown);
    assert!(view.press(KeyCode::Char('q'), 30));
}

#[test]
fn what_a_narrow_terminal_cuts_off_is_scrolled_to() {
    let mut view = View::new(snapshot());
    let shown = |view: &mut View| screen(view, (60, 40), Instant::now());
    assert!(!shown(&mut view).contains("busy"));
    (0..50).for_each(|_| assert!(!view.press(KeyCode::Right, 30)));
    let end = shown(&mut view);
    assert!(end.contains("busy") && !end.contains("stage"), "{end}");
    (0..50).for_each(|_| assert!(!view.press(KeyCode::Left, 30)));
    assert!(shown(&mut view).contains("stage"));
}

#[test]
fn no_terminal_is_too_small() {
    for size in [(1, 1), (2, 2), (20, 3), (300, 4), (40, 200)] {
        for snapshot in [snapshot(), Snapshot::default()] {
            let mut view = View::new(snapshot);
            (view.top, view.left) = (1 << 20, 1 << 20);
            screen(&mut view, size, Instant::now());
        }
    }
}

#[test]
fn a_server_that_goes_away_is_told_of_until_it_is_back() {
    let start = Instant::now();
    let mut view = View { heard: start, ..View::new(snapshot()) };
    view.hear(Err(anyhow::anyhow!("it can't be asked")), start + Duration::from_secs(3));
    let shown = screen(&mut view, (140, 40), start + Duration::from_secs(4));
    assert!(shown.contains("no word for 4 s, trying again: it can't be asked"), "{shown}");
    assert!(shown.contains("! 7 wait"), "what was last known stays");
    view.hear(Ok(snapshot()), start + Duration::from_secs(5));
    assert!(screen(&mut view, (140, 40), start).contains("q ends"));
}
