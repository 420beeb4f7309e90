//! A chart as SVG. Pure.

use std::fmt::{self, Write as _};

/// A diagram with a logarithmic horizontal axis, and a vertical one from zero.
#[derive(Debug)]
pub struct Panel {
    /// Its heading.
    pub title: &'static str,
    /// What the horizontal axis shows.
    pub x: &'static str,
    /// What the vertical axis shows.
    pub y: &'static str,
    /// At most three.
    pub curves: Vec<Curve>,
}

/// A series of points, from left to right.
#[derive(Debug)]
pub struct Curve {
    /// Its name in the legend.
    pub name: &'static str,
    /// Their positions.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// A curve without points.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, points: Vec::new() }
    }
}

/// Colours that colour-blind readers can tell apart.
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// The positions of the axes within a panel.
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 40.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = HEIGHT - 55.0;

/// Draws the panels one below the other.
#[must_use]
pub fn chart(panels: &[Panel]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut svg = Svg(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    ));
    for (n, panel) in panels.iter().enumerate() {
        svg.add(format_args!("<g transform=\"translate(0 {})\">", HEIGHT * n as f64));
        svg.panel(panel);
        svg.add(format_args!("</g>"));
    }
    svg.add(format_args!("</svg>"));
    svg.0
}

struct Svg(String);

impl Svg {
    fn add(&mut self, element: fmt::Arguments<'_>) {
        writeln!(self.0, "{element}").expect("a String takes any text");
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: impl fmt::Display) {
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.add(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ccc\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn panel(&mut self, panel: &Panel) {
        let scale = Scale::of(panel);
        self.add(format_args!(
            "<text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>",
            panel.title
        ));
        let middle = f64::midpoint(TOP, BOTTOM);
        self.add(format_args!(
            "<text x=\"18\" y=\"{middle}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 18 {middle})\">{}</text>",
            panel.y
        ));
        self.text((f64::midpoint(LEFT, RIGHT), HEIGHT - 14.0), "middle", panel.x);
        for step in 0..=5 {
            let value = scale.top * f64::from(step) / 5.0;
            let y = scale.y(value);
            self.line((LEFT, y), (RIGHT, y));
            self.text((LEFT - 6.0, y + 4.0), "end", Tick(value));
        }
        let powers = (0..=6).map(|power| 10_f64.powi(power)).filter(|power| *power < scale.most);
        for value in powers.chain([scale.most]) {
            if scale.has(value) {
                let x = scale.x(value);
                self.line((x, TOP), (x, BOTTOM));
                self.text((x, BOTTOM + 18.0), "middle", Tick(value));
            }
        }
        for (n, (curve, colour)) in panel.curves.iter().zip(COLOURS).enumerate() {
            self.curve(curve, colour, &scale);
            let y = TOP - 12.0;
            let x = LEFT + 8.0 + 235.0 * n as f64;
            self.add(format_args!(
                "<circle cx=\"{x}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/>",
                y - 4.0
            ));
            self.text((x + 8.0, y), "start", curve.name);
        }
    }

    fn curve(&mut self, curve: &Curve, colour: &str, scale: &Scale) {
        let mut line = String::new();
        for (x, y) in &curve.points {
            let (x, y) = (scale.x(*x), scale.y(*y));
            write!(line, "{x:.1},{y:.1} ").expect("a String takes any text");
            self.add(format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            ));
        }
        self.add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.trim_end()
        ));
    }
}

/// Maps values to positions in the picture.
struct Scale {
    least: f64,
    most: f64,
    top: f64,
}

impl Scale {
    fn of(panel: &Panel) -> Self {
        let points = || panel.curves.iter().flat_map(|curve| &curve.points);
        let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let most = points().map(|point| point.0).fold(least * 10.0, f64::max);
        let highest = points().map(|point| point.1).fold(0.0, f64::max);
        Self { least, most, top: above(highest) }
    }

    fn has(&self, x: f64) -> bool {
        (self.least..=self.most).contains(&x)
    }

    fn x(&self, value: f64) -> f64 {
        let part = (value / self.least).ln() / (self.most / self.least).ln();
        LEFT + (RIGHT - LEFT) * part
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * value / self.top
    }
}

/// The next round number at or above a value.
fn above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= value).unwrap_or(power * 10.0)
}

/// Formats a number on an axis.
struct Tick(f64);

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.round();
        if whole >= 1000.0 {
            write!(f, "{},{:03}", (whole / 1000.0).floor(), whole % 1000.0)
        } else {
            write!(f, "{}", (self.0 * 100.0).round() / 100.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: &[(f64, f64)]) -> Panel {
        let curve = Curve { name: "curve", points: points.to_vec() };
        Panel { title: "title", x: "x", y: "y", curves: vec![curve] }
    }

    #[test]
    fn the_axes_contain_all_points() {
        let scale = Scale::of(&panel(&[(1.0, 0.5), (100.0, 3.0)]));
        assert_eq!((scale.x(1.0), scale.x(100.0)), (LEFT, RIGHT));
        assert_eq!((scale.y(0.0), scale.y(5.0)), (BOTTOM, TOP));
        let middle = scale.x(10.0);
        assert!((middle - f64::midpoint(LEFT, RIGHT)).abs() < 1e-9, "{middle}");
    }

    #[test]
    fn a_chart_shows_every_point() {
        let svg = chart(&[panel(&[(1.0, 1.0), (1000.0, 2.0)]), panel(&[(10.0, 1.0)])]);
        // And one for each name in the legend.
        assert_eq!(svg.matches("<circle").count(), 3 + 2);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn axes_end_at_round_numbers() {
        let table = [
            (0.0, 1.0),
            (0.9, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (2.2, 2.5),
            (31.0, 50.0),
            (70.0, 100.0),
        ];
        for (value, end) in table {
            assert!((above(value) - end).abs() < 1e-9, "{value}");
        }
        assert_eq!(
            [0.2, 5.0, 1000.0, 1600.0, 2050.0, 100_000.0].map(|n| Tick(n).to_string()),
            ["0.2", "5", "1,000", "1,600", "2,050", "100,000"]
        );
    }
}
