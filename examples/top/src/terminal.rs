//! Draws frames in the terminal until a key exits, or prints one as plain text.

use std::{io, time::Duration};

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::time;

use crate::{fetch::Source, frame::Screen};

/// The interval of fetches.
const EVERY: Duration = Duration::from_secs(1);

/// The interval of checks for keys.
const KEYS: Duration = Duration::from_millis(50);

/// Draws until `q` or Ctrl-C is pressed, and then restores the terminal, also after a panic.
pub async fn run(source: Source, mut screen: Screen) -> io::Result<()> {
    // Sets a panic hook that restores the terminal.
    let mut terminal = ratatui::try_init().map_err(|error| {
        let advice = "there is no terminal to draw on; use --once to print one frame";
        io::Error::new(error.kind(), format!("{advice} ({error})"))
    })?;
    let ended = watch(&mut terminal, &source, &mut screen).await;
    ratatui::restore();
    ended
}

async fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    source: &Source,
    screen: &mut Screen,
) -> io::Result<()> {
    let mut asking = time::interval(EVERY);
    let mut keys = time::interval(KEYS);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            _ = asking.tick() => match time::timeout(2 * EVERY, source.view()).await {
                Ok(Ok(view)) => (screen.view, screen.trouble) = (Some(view), None),
                Ok(Err(error)) => screen.trouble = Some(error.to_string()),
                Err(_) => screen.trouble = Some("no answer".to_owned()),
            },
            _ = keys.tick() => {
                // Does not wait: handles keys already pressed.
                while event::poll(Duration::ZERO)? {
                    if is_quit(&event::read()?) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn is_quit(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let quits = match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => control,
        _ => false,
    };
    quits && key.kind == KeyEventKind::Press
}

/// One frame of this width, as text.
pub fn plain(screen: &Screen, width: u16) -> Result<String, std::convert::Infallible> {
    let mut terminal = Terminal::new(TestBackend::new(width, screen.height()))?;
    terminal.draw(|frame| screen.draw(frame))?;
    let buffer = terminal.backend().buffer();
    let area = buffer.area;
    let mut text = String::new();
    for y in 0..area.height {
        let line: String = (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn q_and_control_c_exit_and_c_alone_does_not() {
        let pressed = |code, modifiers| is_quit(&Event::Key(KeyEvent::new(code, modifiers)));
        assert!(pressed(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(pressed(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!pressed(KeyCode::Char('c'), KeyModifiers::NONE));
    }
}
