//! What keys mean.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Screen;

/// What somebody who looks at the picture wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Press {
    Quit,
    /// What Esc does: away with the help, else quit.
    Back,
    Help,
    Next,
    Previous,
    Show(Screen),
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Pause,
    Slower,
    Faster,
    Zeros,
}

/// What a key means; none if nothing.
pub(super) fn press(key: KeyEvent) -> Option<Press> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Press::Quit);
    }
    Some(match key.code {
        KeyCode::Char('q' | 'Q') => Press::Quit,
        KeyCode::Esc => Press::Back,
        KeyCode::Char('?' | 'h') => Press::Help,
        KeyCode::Tab | KeyCode::Right => Press::Next,
        KeyCode::BackTab | KeyCode::Left => Press::Previous,
        KeyCode::Char(digit @ '1'..='4') => {
            let number = digit.to_digit(10)? as usize;
            Press::Show(*Screen::ALL.get(number - 1)?)
        }
        KeyCode::Up | KeyCode::Char('k') => Press::Up,
        KeyCode::Down | KeyCode::Char('j') => Press::Down,
        KeyCode::PageUp => Press::PageUp,
        KeyCode::PageDown => Press::PageDown,
        KeyCode::Home => Press::First,
        KeyCode::End => Press::Last,
        KeyCode::Char(' ') => Press::Pause,
        KeyCode::Char('+' | '=') => Press::Slower,
        KeyCode::Char('-') => Press::Faster,
        KeyCode::Char('z') => Press::Zeros,
        _ => return None,
    })
}

/// The keys as the help shows them.
pub(super) const HELP: [(&str, &str); 9] = [
    ("Tab, Shift-Tab, 1-4", "another screen"),
    ("Up, Down, PgUp, PgDn", "move through a list"),
    ("Home, End", "to its begin, to its end"),
    ("Space", "hold the picture, and go on"),
    ("+", "ask the agent less often"),
    ("-", "ask the agent more often"),
    ("z", "show what is zero too, or hide it"),
    ("? or h", "this, and away with it"),
    ("q, Esc, Ctrl-C", "quit"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> Option<Press> {
        press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn keys_mean_what_the_help_says() {
        assert_eq!(key(KeyCode::Char('q')), Some(Press::Quit));
        assert_eq!(key(KeyCode::Esc), Some(Press::Back));
        assert_eq!(key(KeyCode::Tab), Some(Press::Next));
        assert_eq!(key(KeyCode::Char('2')), Some(Press::Show(Screen::Hosts)));
        assert_eq!(key(KeyCode::Char('5')), None);
        assert_eq!(key(KeyCode::Char(' ')), Some(Press::Pause));
        assert_eq!(key(KeyCode::Char('+')), Some(Press::Slower));
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(press(control('c')), Some(Press::Quit));
        assert_eq!(press(control('q')), None);
        let mut released = control('c');
        released.kind = KeyEventKind::Release;
        assert_eq!(press(released), None);
    }
}
