//! One frame: what is seen of a system, drawn in a terminal. Pure.

use pipeline::inspect::{
    ActivityView, EndpointView, KindView, PercentilesView, PhaseView, PipelineView, StageView, View,
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

/// What is drawn.
pub struct Screen {
    pub url: String,
    pub view: Option<View>,
    /// Why it is not what there is now, if it is not.
    pub trouble: Option<String>,
}

impl Screen {
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let nothing = View::default();
        let view = self.view.as_ref().unwrap_or(&nothing);
        let mut rows = vec![Constraint::Length(1)];
        rows.extend(
            view.pipelines.iter().map(|pipeline| Constraint::Length(pipeline_rows(pipeline))),
        );
        if let Some(endpoint) = &view.endpoint {
            rows.push(Constraint::Length(6));
            rows.push(Constraint::Length(endpoint_rows(endpoint)));
        }
        rows.push(Constraint::Min(0));
        let areas = Layout::vertical(rows).split(frame.area());
        frame.render_widget(self.head(), areas[0]);
        for (pipeline, area) in view.pipelines.iter().zip(&areas[1..]) {
            frame.render_widget(stages(pipeline), *area);
        }
        if let Some(endpoint) = &view.endpoint {
            let at = 1 + view.pipelines.len();
            delivery(frame, areas[at], endpoint);
            frame.render_widget(sockets(endpoint), areas[at + 1]);
        }
    }

    /// How many lines all of it takes.
    pub fn height(&self) -> u16 {
        let Some(view) = &self.view else { return 2 };
        let pipelines: u16 = view.pipelines.iter().map(pipeline_rows).sum();
        let endpoint = view.endpoint.as_ref().map_or(0, |endpoint| 6 + endpoint_rows(endpoint));
        1 + pipelines + endpoint
    }

    fn head(&self) -> Paragraph<'_> {
        let mut parts = vec![Span::from(&*self.url).bold()];
        match &self.trouble {
            Some(trouble) => parts.push(format!("  {trouble}").red()),
            None => parts.push("  q: quit".dark_gray()),
        }
        Paragraph::new(Line::from(parts))
    }
}

/// Its stages, their head and its border.
fn pipeline_rows(pipeline: &PipelineView) -> u16 {
    u16::try_from(pipeline.stages.len()).unwrap_or(u16::MAX).saturating_add(3)
}

fn endpoint_rows(endpoint: &EndpointView) -> u16 {
    let rows = endpoint.sockets.len() + endpoint.channels.len() + endpoint.dropped.len();
    u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(3)
}

fn stages(pipeline: &PipelineView) -> Table<'_> {
    let phase = match pipeline.phase {
        PhaseView::Starting => "starting",
        PhaseView::Draining => "draining",
        PhaseView::Ended => "ended",
        _ => "running",
    };
    let verdict = match &pipeline.held_up_by {
        Some(stage) => format!("{stage} holds it up ").red().bold(),
        None => "nothing holds it up ".dark_gray(),
    };
    let title = Line::from(vec![
        Span::from(format!(" {} ", pipeline.name)).bold(),
        Span::from(format!("{phase}, ")),
        verdict,
    ]);
    let head =
        ["stage", "", "in/s", "out/s", "queue", "waiting", "buffer", "demand", "busy", "lost"];
    let mut stages: Vec<&StageView> = pipeline.stages.iter().collect();
    // From the source downstream, as the page draws them.
    stages.sort_by_key(|stage| stage.layer);
    let rows = stages.into_iter().map(|stage| {
        let held = pipeline.held_up_by.as_ref() == Some(&stage.name);
        let mark = if held { "▲ " } else { "  " };
        let (word, color) = doing(stage.mostly);
        let name = Cell::from(format!("{mark}{}", stage.name));
        let cells =
            [
                name.style(if held {
                    Style::new().red().add_modifier(Modifier::BOLD)
                } else {
                    Style::new()
                }),
                Cell::from(word).style(Style::new().fg(color)),
                right(if stage.kind == KindView::Producer {
                    String::new()
                } else {
                    rate(stage.in_per_second)
                }),
                right(rate(stage.out_per_second)),
                right(of(stage.queued, stage.queue_capacity)),
                right(stage.waiting.to_string()),
                right(of(stage.buffered, stage.buffer_capacity)),
                right(stage.workers.map_or_else(
                    || stage.demand.to_string(),
                    |workers| format!("{workers} workers"),
                )),
                right(format!("{:.0} %", stage.busy * 100.0)),
                right(stage.discarded.to_string()),
            ];
        Row::new(cells)
    });
    let widths = [
        Constraint::Min(16),
        Constraint::Length(16),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(7),
        Constraint::Length(11),
        Constraint::Length(12),
        Constraint::Length(6),
        Constraint::Length(6),
    ];
    let head = head.iter().enumerate().map(|(at, name)| match at {
        0 => Cell::from(format!("  {name}")),
        1 => Cell::from(*name),
        _ => right((*name).to_owned()),
    });
    Table::new(rows, widths)
        .header(Row::new(head).style(Style::new().dark_gray()))
        .block(Block::bordered().title(title))
}

fn delivery(frame: &mut Frame<'_>, area: Rect, endpoint: &EndpointView) {
    let head = ["", "count", "p50", "p90", "p99", "max"].map(|name| right(name.to_owned()));
    let rows = endpoint.delivered.windows.iter().map(|window: &PercentilesView| {
        let times = [window.p50, window.p90, window.p99, window.max].map(milliseconds);
        let over = format!("last {} s", window.seconds);
        Row::new([over, window.count.to_string()].into_iter().chain(times).map(right))
    });
    let title = Line::from(vec![
        " delivery ".bold(),
        Span::from(format!(
            "{} frames/s out, {} in, {} broadcasts/s, {} frames wait ",
            rate(endpoint.frames_out_per_second),
            rate(endpoint.frames_in_per_second),
            rate(endpoint.broadcasts_per_second),
            endpoint.frames_waiting,
        )),
    ]);
    let table = Table::new(rows, [Constraint::Length(12); 6])
        .header(Row::new(head).style(Style::new().dark_gray()))
        .block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

fn sockets(endpoint: &EndpointView) -> Table<'_> {
    let mounts = endpoint.sockets.iter().map(|mount| {
        let open = format!("{} sockets", mount.open);
        [mount.path.clone(), open, format!("{} refused", mount.refused)]
    });
    let channels = endpoint.channels.iter().map(|channel| {
        let open = format!("{} channels", channel.open);
        [channel.pattern.clone(), open, format!("{} topics", channel.topics)]
    });
    let dropped = endpoint.dropped.iter().map(|(reason, count)| {
        [format!("dropped: {reason}"), format!("{count} frames"), String::new()]
    });
    let rows = mounts.chain(channels).chain(dropped).map(Row::new);
    let head = Row::new(["mount, topics", "open", ""]).style(Style::new().dark_gray());
    Table::new(rows, [Constraint::Min(30), Constraint::Length(18), Constraint::Length(18)])
        .header(head)
        .block(Block::bordered().title(" sockets ".bold()))
}

fn doing(activity: ActivityView) -> (&'static str, Color) {
    match activity {
        ActivityView::Busy => ("busy", Color::Green),
        ActivityView::WaitingForDemand => ("waits for demand", Color::Yellow),
        ActivityView::WaitingForEvents => ("waits for events", Color::Blue),
        ActivityView::Paused => ("paused", Color::Magenta),
        ActivityView::Ended => ("ended", Color::DarkGray),
        _ => ("starting", Color::DarkGray),
    }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn of(count: usize, bound: Option<usize>) -> String {
    bound.map_or_else(|| count.to_string(), |bound| format!("{count}/{bound}"))
}

fn rate(per_second: f64) -> String {
    if per_second >= 100.0 || per_second == 0.0 {
        format!("{per_second:.0}")
    } else {
        format!("{per_second:.1}")
    }
}

fn milliseconds(time: Option<f64>) -> String {
    time.map_or_else(|| "–".to_owned(), |time| format!("{time:.2} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::plain;

    fn screen(json: &str) -> Screen {
        Screen {
            url: "http://localhost/inspect".into(),
            view: Some(serde_json::from_str(json).unwrap()),
            trouble: None,
        }
    }

    const SLOW: &str = r#"{"version":1,"pipelines":[{"name":"push","phase":"running",
        "held_up_by":"render","stages":[
        {"name":"queue","mostly":"waiting_for_demand","queued":812,"queue_capacity":1000},
        {"name":"render","kind":"consumer","layer":1,"mostly":"busy","busy":0.99,"in_per_second":50.25}]}],
        "endpoint":{"sockets":[{"path":"/socket","open":3}],
        "channels":[{"pattern":"user:*","open":3,"topics":2}],"dropped":{"overflow":17},
        "delivered":{"count":1,"windows":[{"seconds":10,"count":1,"p50":0.714}]}}}"#;

    #[test]
    fn a_frame_shows_stages_what_holds_them_up_times_and_sockets() {
        let text = plain(&screen(SLOW), 120).unwrap();
        let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap().to_owned();
        assert!(line(" push ").contains("render holds it up"), "{text}");
        assert!(line("│  queue ").contains("waits for demand"), "{text}");
        assert!(line("│  queue ").contains("812/1000"), "{text}");
        assert!(line("▲ render").contains("busy") && line("▲ render").contains("99 %"), "{text}");
        assert!(line("last 10 s").contains("0.71 ms"), "{text}");
        assert!(line("user:*").contains("3 channels") && line("user:*").contains("2 topics"));
        assert!(line("overflow").contains("17 frames"), "{text}");
    }

    #[test]
    fn before_anything_is_seen_it_says_why() {
        let trouble = Some("cannot connect".to_owned());
        let screen = Screen { url: "http://localhost".into(), view: None, trouble };
        assert!(plain(&screen, 80).unwrap().contains("cannot connect"));
    }

    #[test]
    fn a_narrow_terminal_does_no_harm() {
        for width in [1, 20, 60] {
            plain(&screen(SLOW), width).unwrap();
        }
    }
}
