//! The table of results in Markdown. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    error::LoadError,
    figure::{Figure, Short},
};

/// The table is between these lines of a text.
const BEGIN: &str = "<!-- printed by `cargo xtask load` -->\n";
const END: &str = "<!-- end of the table -->\n";

/// A row of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) work: String,
    /// The figure of Phoenix or GenStage, measured once. Empty if there is none.
    pub(crate) beam: &'static str,
    pub(crate) baseline: Option<Figure>,
    pub(crate) raw: Option<Figure>,
    pub(crate) ours: Figure,
    pub(crate) target: Target,
}

/// The targets, and whether they are met.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    words: String,
    pub(crate) met: bool,
}

impl Line {
    pub(crate) fn new(work: impl Into<String>, ours: Figure) -> Self {
        let target = Target { words: String::new(), met: true };
        Self { work: work.into(), beam: "", baseline: None, raw: None, ours, target }
    }

    pub(crate) fn beam(self, beam: &'static str) -> Self {
        Self { beam, ..self }
    }

    pub(crate) fn baseline(self, baseline: Figure) -> Self {
        Self { baseline: Some(baseline), ..self }
    }

    pub(crate) fn raw(self, raw: Figure) -> Self {
        Self { raw: Some(raw), ..self }
    }

    /// Adds an upper limit as a target.
    pub(crate) fn at_most(self, limit: f64, words: &str) -> Self {
        let met = self.ours.median <= limit;
        self.with_target(words, met)
    }

    /// Adds a lower limit as a target.
    pub(crate) fn at_least(self, limit: f64, words: &str) -> Self {
        let met = self.ours.median >= limit;
        self.with_target(words, met)
    }

    fn with_target(mut self, words: &str, met: bool) -> Self {
        if !self.target.words.is_empty() {
            self.target.words.push_str(", ");
        }
        self.target.words.push_str(words);
        self.target.met &= met;
        self
    }
}

/// Writes the table.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let mut text = String::from(
        "| work | BEAM | baseline | raw | pipeline | to baseline | to raw | target | met |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for line in lines {
        let ours = line.ours.median;
        let cell = |figure: &Option<Figure>| {
            figure.as_ref().map_or("–".to_owned(), |figure| Short(figure.median).to_string())
        };
        let ratio = |figure: &Option<Figure>| {
            figure
                .as_ref()
                .map_or("–".to_owned(), |figure| format!("{} ×", Short(ours / figure.median)))
        };
        let beam = if line.beam.is_empty() { "–" } else { line.beam };
        let met = match (line.target.words.as_str(), line.target.met) {
            ("", _) => "–",
            (_, true) => "yes",
            (_, false) => "**no**",
        };
        writeln!(
            text,
            "| {} | {beam} | {} | {} | {} | {} | {} | {} | {met} |",
            line.work,
            cell(&line.baseline),
            cell(&line.raw),
            Short(ours),
            ratio(&line.baseline),
            ratio(&line.raw),
            line.target.words,
        )
        .expect("a String takes any text");
    }
    text
}

/// Says of each row with a target whether it is met. Fails if one is not.
pub(crate) fn require(lines: &[Line]) -> (String, Result<(), LoadError>) {
    let with_target = lines.iter().filter(|line| !line.target.words.is_empty());
    let (mut text, mut missed, mut of) = (String::new(), 0, 0);
    for Line { work, ours, target, .. } in with_target {
        let met = if target.met { "met" } else { "NOT met" };
        writeln!(text, "{met}: {work}: {}, target {}", Short(ours.median), target.words)
            .expect("a String takes any text");
        of += 1;
        missed += usize::from(!target.met);
    }
    (text, if missed == 0 { Ok(()) } else { Err(LoadError::NotMet { missed, of }) })
}

/// The text with its table replaced. None if it has no table.
pub(crate) fn replaced(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64) -> Figure {
        Figure::new(vec![value]).unwrap()
    }

    #[test]
    fn a_line_shows_ratios_and_whether_all_targets_are_met() {
        let line = Line::new("burst", figure(0.3)).beam("12.8").raw(figure(2.0));
        let line = line.at_most(0.4, "≤ 0.4").at_least(1.0, "≥ 1");
        let text = markdown(&[line]);
        let last = text.lines().last().unwrap();
        assert_eq!(last, "| burst | 12.8 | – | 2.00 | 0.30 | – | 0.15 × | ≤ 0.4, ≥ 1 | **no** |");
    }

    #[test]
    fn a_target_that_is_not_met_is_an_error_where_all_are_required() {
        let fast = || Line::new("fast", figure(3.0)).at_least(1.0, "≥ 1");
        let without = || Line::new("any", figure(0.1));
        let (text, required) = require(&[fast(), without()]);
        assert_eq!(text, "met: fast: 3.00, target ≥ 1\n");
        assert!(required.is_ok());
        let slow = Line::new("slow", figure(0.3)).at_least(1.0, "≥ 1").at_most(0.4, "≤ 0.4");
        let (text, required) = require(&[fast(), slow, without()]);
        assert!(text.ends_with("NOT met: slow: 0.30, target ≥ 1, ≤ 0.4\n"), "{text}");
        assert_eq!(required.unwrap_err().to_string(), "1 of 2 targets are not met");
    }

    #[test]
    fn a_table_takes_the_place_of_another() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let new = replaced(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        assert_eq!(replaced(&new, "new\n").as_deref(), Some(&*new));
        assert_eq!(replaced("nothing", "new\n"), None);
    }
}
