//! Draws one frame of a view in a terminal. Pure.

use pipeline::{
    inspect::{EndpointView, LegView, NodeView, PercentilesView, PipelineView, StageView, View},
    snapshot::{Activity, PipelinePhase, SourceSnapshot, StageKind},
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table},
};

/// The state that is drawn.
pub struct Screen {
    pub url: String,
    pub view: Option<View>,
    /// Why the view is missing or outdated.
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
        let sources: Vec<_> = sources(view).collect();
        if !sources.is_empty() {
            rows.push(Constraint::Length(source_rows(sources.len())));
        }
        if let Some(endpoint) = &view.endpoint {
            rows.push(Constraint::Length(delivery_rows(endpoint)));
            rows.push(Constraint::Length(endpoint_rows(endpoint)));
        }
        rows.push(Constraint::Length(node_rows(view)));
        rows.push(Constraint::Min(0));
        let areas = Layout::vertical(rows).split(frame.area());
        frame.render_widget(self.head(), areas[0]);
        for (pipeline, area) in view.pipelines.iter().zip(&areas[1..]) {
            frame.render_widget(stages(pipeline, area.width), *area);
        }
        let mut at = 1 + view.pipelines.len();
        if !sources.is_empty() {
            durable(frame, areas[at], &sources);
            at += 1;
        }
        if let Some(endpoint) = &view.endpoint {
            delivery(frame, areas[at], endpoint);
            frame.render_widget(sockets(endpoint), areas[at + 1]);
            at += 2;
        }
        if !view.nodes.is_empty() {
            nodes(frame, areas[at], &view.nodes);
        }
    }

    /// The number of lines of the whole frame.
    pub fn height(&self) -> u16 {
        let Some(view) = &self.view else { return 2 };
        let pipelines: u16 = view.pipelines.iter().map(pipeline_rows).sum();
        let endpoint = view.endpoint.as_ref();
        let endpoint =
            endpoint.map_or(0, |endpoint| delivery_rows(endpoint) + endpoint_rows(endpoint));
        let sources = match sources(view).count() {
            0 => 0,
            count => source_rows(count),
        };
        1 + pipelines + sources + endpoint + node_rows(view)
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

/// The number of lines of a pipeline: stages, head and border.
fn pipeline_rows(pipeline: &PipelineView) -> u16 {
    u16::try_from(pipeline.stages.len()).unwrap_or(u16::MAX).saturating_add(3)
}

/// The number of lines of the delivery times: three windows, the parts of a push, head and border.
fn delivery_rows(endpoint: &EndpointView) -> u16 {
    let rows = endpoint.delivered.windows.len() + endpoint.delivered.legs.len();
    u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(3)
}

fn endpoint_rows(endpoint: &EndpointView) -> u16 {
    let rows = endpoint.sockets.len() + endpoint.channels.len() + endpoint.snapshot.dropped.len();
    u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(3)
}

/// The number of lines of the nodes of a cluster: a row for each, head and border. None if there is no cluster.
fn node_rows(view: &View) -> u16 {
    match view.nodes.len() {
        0 => 0,
        nodes => u16::try_from(nodes).unwrap_or(u16::MAX).saturating_add(3),
    }
}

/// The durable sources, with the names of their stages.
fn sources(view: &View) -> impl Iterator<Item = (&str, &SourceSnapshot)> {
    let stages = view.pipelines.iter().flat_map(|pipeline| &pipeline.stages);
    stages.filter_map(|stage| Some((stage.name(), stage.snapshot.source.as_ref()?)))
}

/// The number of lines of so many sources: a row and a line for each, head and border.
fn source_rows(sources: usize) -> u16 {
    u16::try_from(2 * sources).unwrap_or(u16::MAX).saturating_add(3)
}

/// The durable sources: their numbers, and below them what they read and their last errors.
fn durable(frame: &mut Frame<'_>, area: Rect, sources: &[(&str, &SourceSnapshot)]) {
    let number = |number: Option<u64>| number.map_or("–".to_owned(), |n| short(n as f64));
    let rows = sources.iter().map(|(stage, source)| {
        let (state, color) =
            if source.connected { ("connected", Color::Green) } else { ("away", Color::Red) };
        let age = source.oldest_age.map_or("–".to_owned(), |age| format!("{}s", age.as_secs()));
        let numbers = [
            number(source.backlog),
            age,
            number(Some(source.held)),
            number(Some(source.redelivered)),
            number(source.dead_letters),
            number(Some(source.connection_errors)),
        ];
        let cells = numbers.map(right).into_iter();
        let state = Cell::from(state).style(Style::new().fg(color));
        let first = [Cell::from(format!("  {stage}")), state].into_iter().chain(cells);
        Row::new(first)
    });
    let lines = sources.iter().map(|(stage, source)| {
        let error = source.last_error.as_ref();
        let error = error.map_or(String::new(), |text| format!(", last error: {text}"));
        Line::from(format!("  {stage} reads {}{error}", source.broker)).dark_gray()
    });
    // Only the columns that fit, so that no number is truncated.
    let widths = [9, 7, 8, 4, 11, 4, 6];
    let needed = |columns: usize| {
        BORDERS + NAME + widths[..columns].iter().map(|width| width + SPACING).sum::<u16>()
    };
    let fit = (0..=widths.len()).rev().find(|columns| needed(*columns) <= area.width).unwrap_or(0);
    let widths = widths[..fit].iter().map(|width| Constraint::Length(*width));
    let names = ["backlog", "oldest", "held", "redelivered", "dead", "errors"];
    let names = names.map(|name| right(name.to_owned()));
    let head = [Cell::from("  source"), Cell::from("")].into_iter().chain(names);
    let table = Table::new(rows, std::iter::once(Constraint::Min(NAME)).chain(widths))
        .column_spacing(SPACING)
        .header(Row::new(head).style(Style::new().dark_gray()))
        .block(Block::bordered().title(" durable sources ".bold()));
    let below = Constraint::Length(u16::try_from(sources.len()).unwrap_or(u16::MAX));
    let areas = Layout::vertical([Constraint::Min(0), below]).split(area);
    frame.render_widget(table, areas[0]);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), areas[1]);
}

/// A column of the table of stages.
struct Column {
    name: &'static str,
    width: u16,
    /// Columns with a higher rank are dropped first when the terminal is too narrow.
    rank: u8,
    cell: fn(&StageView) -> String,
}

/// The space between two columns, and on both sides of the table.
const SPACING: u16 = 1;
const BORDERS: u16 = 2;

/// The minimum width of the column with a stage's name.
const NAME: u16 = 12;

/// The width of a column with times.
const TIME: u16 = 12;

/// All columns, with the widest text of each, because a truncated number is a wrong one.
const COLUMNS: [Column; 9] = [
    Column { name: "", width: 16, rank: 1, cell: state },
    Column { name: "in/s", width: 5, rank: 2, cell: arrived },
    Column { name: "out/s", width: 5, rank: 2, cell: |stage| rate(stage.out_per_second) },
    Column {
        name: "queue",
        width: 9,
        rank: 3,
        cell: |stage| of(stage.snapshot.queued, stage.snapshot.queue_capacity),
    },
    Column {
        name: "waiting",
        width: 7,
        rank: 7,
        cell: |stage| short(stage.snapshot.waiting as f64),
    },
    Column {
        name: "buffer",
        width: 9,
        rank: 8,
        cell: |stage| of(stage.snapshot.buffered, stage.snapshot.buffer_capacity),
    },
    Column { name: "demand", width: 12, rank: 6, cell: demand },
    Column {
        name: "busy",
        width: 5,
        rank: 4,
        cell: |stage| format!("{:.0} %", stage.busy * 100.0),
    },
    Column {
        name: "lost",
        width: 4,
        rank: 5,
        cell: |stage| short(stage.snapshot.discarded as f64),
    },
];

fn arrived(stage: &StageView) -> String {
    if stage.snapshot.kind == StageKind::Producer {
        String::new()
    } else {
        rate(stage.in_per_second)
    }
}

fn demand(stage: &StageView) -> String {
    match stage.snapshot.workers {
        Some(workers) => format!("{} workers", short(workers as f64)),
        None => short(stage.demand as f64),
    }
}

/// The columns that fit next to the name.
fn columns(width: u16) -> Vec<&'static Column> {
    let mut columns: Vec<_> = COLUMNS.iter().collect();
    let needed = |columns: &[&Column]| {
        NAME + BORDERS + columns.iter().map(|column| column.width + SPACING).sum::<u16>()
    };
    while needed(&columns) > width {
        let last = columns.iter().enumerate().max_by_key(|(_, column)| column.rank);
        let Some((at, _)) = last else { break };
        columns.remove(at);
    }
    columns
}

fn stages(pipeline: &PipelineView, width: u16) -> Table<'_> {
    let phase = match pipeline.phase {
        PipelinePhase::Starting => "starting",
        PipelinePhase::Running => "running",
        PipelinePhase::Draining => "draining",
        PipelinePhase::Ended => "ended",
        _ => "unknown",
    };
    let verdict = match &pipeline.bottleneck {
        Some(stage) => format!("bottleneck: {stage} ").red().bold(),
        None => "no bottleneck ".dark_gray(),
    };
    let title = Line::from(vec![
        Span::from(format!(" {} ", pipeline.name)).bold(),
        Span::from(format!("{phase}, ")),
        verdict,
    ]);
    let columns = columns(width);
    let mut stages: Vec<&StageView> = pipeline.stages.iter().collect();
    // From the source downstream, as on the page.
    stages.sort_by_key(|stage| stage.layer);
    let rows = stages.into_iter().map(|stage| {
        let is_bottleneck = pipeline.bottleneck.as_deref() == Some(stage.name());
        let mark = if is_bottleneck { "▲ " } else { "  " };
        let style = if is_bottleneck {
            Style::new().red().add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
        let name = Cell::from(format!("{mark}{}", stage.name())).style(style);
        let cells = columns.iter().map(|column| match column.name {
            "" => Cell::from((column.cell)(stage)).style(Style::new().fg(doing(stage.mostly).1)),
            _ => right((column.cell)(stage)),
        });
        Row::new(std::iter::once(name).chain(cells))
    });
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let widths = std::iter::once(Constraint::Min(NAME)).chain(widths);
    let names = columns.iter().map(|column| right(column.name.to_owned()));
    let head = Row::new(std::iter::once(Cell::from("  stage")).chain(names));
    Table::new(rows, widths)
        .column_spacing(SPACING)
        .header(head.style(Style::new().dark_gray()))
        .block(Block::bordered().title(title))
}

fn delivery(frame: &mut Frame<'_>, area: Rect, endpoint: &EndpointView) {
    // Only the columns that fit, so that no number is truncated.
    let fit = usize::from(area.width.saturating_sub(BORDERS) / (TIME + SPACING)).clamp(2, 7);
    let head =
        ["", "count", "p50", "p90", "p99", "max", "normal"].map(|name| right(name.to_owned()));
    let head = head.into_iter().take(fit);
    let row = |name: String, window: &PercentilesView, normal: String| {
        let times = [window.p50, window.p90, window.p99, window.max].map(milliseconds);
        let cells = [name, window.count.to_string()].into_iter().chain(times).chain([normal]);
        Row::new(cells.take(fit).map(right))
    };
    let windows = endpoint.delivered.windows.iter();
    let windows =
        windows.map(|window| row(format!("last {} s", window.seconds), window, String::new()));
    // The parts of the last minute.
    let legs = endpoint.delivered.legs.iter();
    let normal =
        |leg: &LegView| leg.normal_ms.map_or_else(String::new, |most| format!("< {most} ms"));
    let rows = windows.chain(legs.map(|leg| row(leg.leg.clone(), &leg.percentiles, normal(leg))));
    let title = Line::from(vec![
        " delivery ".bold(),
        Span::from(format!(
            "{} frames/s out, {} in, {} broadcasts/s, {} frames wait ",
            rate(endpoint.frames_out_per_second),
            rate(endpoint.frames_in_per_second),
            rate(endpoint.broadcasts_per_second),
            endpoint.snapshot.frames_waiting,
        )),
    ]);
    let table = Table::new(rows, vec![Constraint::Length(TIME); fit])
        .header(Row::new(head).style(Style::new().dark_gray()))
        .block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

fn sockets(endpoint: &EndpointView) -> Table<'_> {
    let mounts = endpoint.sockets.iter().map(|mount| &mount.snapshot).map(|mount| {
        let open = format!("{} sockets", mount.open);
        [mount.path.clone(), open, format!("{} refused", mount.refused)]
    });
    let channels = endpoint.channels.iter().map(|channel| &channel.snapshot).map(|channel| {
        let open = format!("{} channels", channel.open);
        [channel.pattern.clone(), open, format!("{} topics", channel.topics)]
    });
    let dropped = endpoint.snapshot.dropped.iter().map(|(reason, count)| {
        [format!("dropped: {reason}"), format!("{count} frames"), String::new()]
    });
    let rows = mounts.chain(channels).chain(dropped).map(Row::new);
    let head = Row::new(["mount, topics", "open", ""]).style(Style::new().dark_gray());
    Table::new(rows, [Constraint::Min(30), Constraint::Length(18), Constraint::Length(18)])
        .header(head)
        .block(Block::bordered().title(" sockets ".bold()))
}

/// The nodes of a cluster: how much they do, and how well they hear each other.
fn nodes(frame: &mut Frame<'_>, area: Rect, nodes: &[NodeView]) {
    let rows = nodes.iter().map(|node| {
        let silent = format!("{:.0}s ago", node.silent_seconds);
        let (state, color) = match node {
            _ if node.is_gone => (silent, Color::Red),
            _ if node.is_draining => ("draining".to_owned(), Color::Yellow),
            _ if node.is_this => ("this one".to_owned(), Color::Green),
            _ => ("there".to_owned(), Color::Green),
        };
        let between = node.between.as_ref();
        let numbers = [
            short(node.sockets as f64),
            rate(node.frames_out_per_second),
            rate(node.dropped_per_second),
            milliseconds(node.delivered_p99),
            milliseconds(between.and_then(|between| between.lag_ms)),
            between.map_or("–".to_owned(), |between| short(between.snapshot.lost as f64)),
        ];
        let first = [
            Cell::from(format!("  {}", node.name)),
            Cell::from(state).style(Style::new().fg(color)),
        ];
        let last = Cell::from(node.bottlenecks.join(", "));
        Row::new(first.into_iter().chain(numbers.map(right)).chain([last]))
    });
    // Only the columns that fit, so that no number is truncated.
    let widths = [9, 7, 6, 6, TIME, TIME, 5, NAME];
    let needed = |columns: usize| {
        BORDERS + NAME + widths[..columns].iter().map(|width| width + SPACING).sum::<u16>()
    };
    let fit = (0..=widths.len()).rev().find(|columns| needed(*columns) <= area.width).unwrap_or(0);
    let widths = widths[..fit].iter().map(|width| Constraint::Length(*width));
    let widths: Vec<_> = [Constraint::Min(NAME)].into_iter().chain(widths).collect();
    let head = ["  node", "state"].map(Cell::from).into_iter();
    let names = ["sockets", "out/s", "drop/s", "p99", "lag", "lost"];
    let head = head.chain(names.map(|name| right(name.to_owned()))).chain(["bottleneck".into()]);
    let table = Table::new(rows, widths)
        .column_spacing(SPACING)
        .header(Row::new(head).style(Style::new().dark_gray()))
        .block(Block::bordered().title(" nodes ".bold()));
    frame.render_widget(table, area);
}

fn state(stage: &StageView) -> String {
    match stage.items_held_back {
        0 => doing(stage.mostly).0.to_owned(),
        items => format!("{} held back", short(items as f64)),
    }
}

fn doing(activity: Activity) -> (&'static str, Color) {
    match activity {
        Activity::Busy => ("busy", Color::Green),
        Activity::WaitingForDemand => ("waits for demand", Color::Yellow),
        Activity::WaitingForEvents => ("waits for events", Color::Blue),
        Activity::Paused => ("paused", Color::Magenta),
        Activity::Ended => ("ended", Color::DarkGray),
        Activity::Starting => ("starting", Color::DarkGray),
        _ => ("unknown", Color::DarkGray),
    }
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn of(count: usize, bound: Option<usize>) -> String {
    let count_text = short(count as f64);
    bound.map_or(count_text.clone(), |bound| format!("{count_text}/{}", short(bound as f64)))
}

fn rate(per_second: f64) -> String {
    if per_second < 100.0 && per_second > 0.0 {
        format!("{per_second:.1}")
    } else {
        short(per_second)
    }
}

/// A number in at most four characters: `9.4k` for 9410. It is rounded down, so that a queue that is not
/// full does not look full.
fn short(number: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let (mut scaled, mut unit) = (number, 0);
    while scaled >= 1_000.0 && unit + 1 < UNITS.len() {
        (scaled, unit) = (scaled / 1_000.0, unit + 1);
    }
    let name = UNITS[unit];
    let tenths = (scaled * 10.0).floor() / 10.0;
    if unit == 0 || scaled >= 10.0 || tenths.fract() == 0.0 {
        format!("{:.0}{name}", scaled.floor())
    } else {
        format!("{tenths:.1}{name}")
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
        "bottleneck":"render","stages":[
        {"name":"queue","mostly":"waiting_for_demand","queued":812,"queue_capacity":1000},
        {"name":"render","kind":"consumer","layer":1,"mostly":"busy","busy":0.99,"in_per_second":50.25}]}],
        "endpoint":{"sockets":[{"path":"/socket","open":3}],
        "channels":[{"pattern":"user:*","open":3,"topics":2}],"dropped":{"overflow":17},
        "delivered":{"count":1,"windows":[{"seconds":10,"count":1,"p50":0.714}],
        "legs":[{"leg":"queued","normal_ms":1.0,"count":1,"p50":0.5},{"leg":"written","count":2,"p99":812.4}]}}}"#;

    #[test]
    fn a_frame_shows_stages_their_bottleneck_times_and_sockets() {
        let text = plain(&screen(SLOW), 120).unwrap();
        let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap().to_owned();
        assert!(line(" push ").contains("bottleneck: render"), "{text}");
        assert!(line("│  queue ").contains("waits for demand"), "{text}");
        assert!(line("│  queue ").contains("812/1k"), "{text}");
        assert!(line("▲ render").contains("busy") && line("▲ render").contains("99 %"), "{text}");
        assert!(line("last 10 s").contains("0.71 ms"), "{text}");
        assert!(line("written").contains("812.40 ms"), "{text}");
        assert!(line("queued").contains("< 1 ms"), "{text}");
        assert!(line("user:*").contains("3 channels") && line("user:*").contains("2 topics"));
        assert!(line("overflow").contains("17 frames"), "{text}");
    }

    #[test]
    fn a_frame_shows_durable_sources_and_their_last_errors() {
        let view = r#"{"version":1,"pipelines":[{"name":"push","stages":[
            {"name":"orders","source":{"broker":"a queue","connected":false,"backlog":81200,
            "oldest_age_seconds":61.5,"held":3,"redelivered":7,"dead_letters":2,
            "connection_errors":4,"last_error":"refused\u001b[31m"}},{"name":"work"}]}],
            "endpoint":{"channels":[{"pattern":"user:*"}]}}"#;
        let text = plain(&screen(view), 120).unwrap();
        let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap().to_owned();
        let words = line(" away ");
        let words = words.split_whitespace().collect::<Vec<_>>()[1..].join(" ");
        assert!(words.starts_with("orders away 81k 61s 3 7 2 4"), "{text}");
        assert!(line("orders reads a queue, last error: refused").contains("[31m"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(line("user:*").contains("channels"), "{text}");
        for width in [1, 20, 40, 60] {
            plain(&screen(view), width).unwrap();
        }
    }

    #[test]
    fn a_frame_shows_the_nodes_and_which_are_gone() {
        let view = r#"{"version":1,"pipelines":[{"name":"push","stages":[{"name":"work"}]}],
            "endpoint":{"channels":[{"pattern":"user:*"}]},"nodes":[
            {"name":"left","is_this":true,"sockets":20300,"frames_out_per_second":812.0,
            "delivered_p99":4.5,"bottlenecks":["push: work"],
            "between":{"lost":7,"lag_ms":1.25}},
            {"name":"middle","is_draining":true},
            {"name":"right\u001b[31m","is_gone":true,"silent_seconds":61.4}]}"#;
        let text = plain(&screen(view), 120).unwrap();
        let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap().to_owned();
        let words = line("│  left ");
        let words = words.split_whitespace().collect::<Vec<_>>()[1..].join(" ");
        assert!(
            words.starts_with("left this one 20k 812 0 4.50 ms 1.25 ms 7 push: work"),
            "{text}"
        );
        assert!(line("│  middle ").contains("draining"), "{text}");
        assert!(line("│  right").contains("61s ago") && !text.contains('\u{1b}'), "{text:?}");
        for width in [1, 20, 40, 60, 80] {
            plain(&screen(view), width).unwrap();
        }
    }

    #[test]
    fn without_a_view_the_frame_shows_the_reason() {
        let trouble = Some("cannot connect".to_owned());
        let screen = Screen { url: "http://localhost".into(), view: None, trouble };
        assert!(plain(&screen, 80).unwrap().contains("cannot connect"));
    }

    #[test]
    fn a_narrow_terminal_shows_fewer_columns_and_no_truncated_number() {
        let full = SLOW.replace(
            "\"queued\":812,\"queue_capacity\":1000",
            "\"queued\":9410,\"queue_capacity\":10000",
        );
        for width in [1, 20] {
            plain(&screen(&full), width).unwrap();
        }
        for width in 40..=130 {
            let text = plain(&screen(&full), width).unwrap();
            let stages = text.lines().filter(|line| line.contains("queue") && line.contains('│'));
            let shown: Vec<&str> = stages
                .flat_map(|line| line.split([' ', '│']))
                .filter(|word| word.contains('/'))
                .collect();
            let right = ["in/s", "out/s", "9.4k/10k"];
            assert!(shown.iter().all(|word| right.contains(word)), "{width}: {text}");
            assert!(width < 80 || shown.contains(&"9.4k/10k"), "{width}: {text}");
        }
    }

    #[test]
    fn numbers_take_four_characters_at_most() {
        let numbers = [
            0,
            7,
            999,
            1_000,
            1_050,
            9_410,
            9_999,
            10_000,
            125_430,
            999_999,
            1_000_000,
            2_500_000_000,
        ];
        let shown = numbers.map(|number: u64| short(number as f64));
        let expected =
            ["0", "7", "999", "1k", "1k", "9.4k", "9.9k", "10k", "125k", "999k", "1M", "2.5G"];
        assert_eq!(shown, expected);
    }
}
