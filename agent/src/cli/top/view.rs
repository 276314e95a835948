//! Draws what is known into a buffer of any size.
//!
//! From the top: who answers, how it is and how old that is, what to look at, the screens,
//! and what the chosen one shows. A small terminal loses what matters least. What is put
//! together is what has room, however many hosts there are.

mod grid;
mod lists;
mod overview;

use std::time::Duration;

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::{
    keys,
    model::{Extent, Model, Picture, Screen},
};
use crate::{
    admin::api::Status,
    cli::show::{members, span},
};

/// What is wrong.
const BAD: Style = Style::new().fg(Color::Red);
/// What is to be looked at.
const ODD: Style = Style::new().fg(Color::Yellow);
const PLAIN: Style = Style::new();
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const BAR: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Smaller terminals have no line of keys, and no line of screens.
const ROOMY: u16 = 10;

/// What of a terminal's lines problems may take.
const PROBLEMS_SHARE: usize = 3;

/// Draws all of it, and says how long the chosen screen's list is, if that is shown.
pub(super) fn draw(
    model: &Model,
    now: Duration,
    now_unix_ms: u64,
    buffer: &mut Buffer,
) -> Option<Extent> {
    let area = buffer.area;
    let mut page = Page { area, buffer };
    let roomy = area.height >= ROOMY;
    let Some(picture) = model.picture() else {
        page.top(Line::raw("the agent has not answered yet"));
        return None;
    };
    page.top(head(&picture.watch.status, area.width));
    for line in state(model, picture, now, area) {
        page.top(line);
    }
    if roomy {
        page.bottom(keys_line(model));
    }
    let tabs = if roomy { page.take_top() } else { None };
    let body = match model.shows_help() {
        true => help(),
        false => body(model, picture, now_unix_ms, page.area),
    };
    let room = usize::from(page.area.height).saturating_sub(body.fixed.len());
    let extent = Extent {
        rows: body.rows,
        room,
    };
    for line in body.fixed.into_iter().chain(body.shown) {
        page.top(line);
    }
    if let Some(mut tabs) = tabs.map(|area| Page { area, buffer }) {
        tabs.top(screens(model, extent));
    }
    (!model.shows_help()).then_some(extent)
}

/// What a screen shows.
struct Body {
    /// What stays where it is.
    fixed: Vec<Line<'static>>,
    /// The rows of its list that are to be seen.
    shown: Vec<Line<'static>>,
    /// How many there are in all.
    rows: usize,
}

fn body(model: &Model, picture: &Picture, now_unix_ms: u64, area: Rect) -> Body {
    let room = usize::from(area.height);
    match model.screen() {
        Screen::Overview => overview::body(model, picture, now_unix_ms, room),
        Screen::Hosts => lists::hosts(model, picture, now_unix_ms, room),
        Screen::Outcomes => lists::outcomes(model, picture, room),
        Screen::Counters => lists::counters(model, picture, room),
    }
}

/// The part of the terminal that is still free.
struct Page<'a> {
    area: Rect,
    buffer: &'a mut Buffer,
}

impl Page<'_> {
    /// Takes the free line at the top, if there is one.
    fn take_top(&mut self) -> Option<Rect> {
        let line = Rect {
            height: 1,
            ..self.area
        };
        let rest = self.area.height.checked_sub(1)?;
        self.area.y += 1;
        self.area.height = rest;
        Some(line)
    }

    /// Puts a line where the free part begins; nowhere, if nothing is free.
    fn top(&mut self, line: Line<'_>) {
        if let Some(area) = self.take_top() {
            self.put(area, &line);
        }
    }

    /// The same at its end.
    fn bottom(&mut self, line: Line<'_>) {
        if let Some(rest) = self.area.height.checked_sub(1) {
            self.area.height = rest;
            let area = Rect {
                y: self.area.y + rest,
                height: 1,
                ..self.area
            };
            self.put(area, &line);
        }
    }

    fn put(&mut self, area: Rect, line: &Line<'_>) {
        self.buffer.set_style(area, line.style);
        self.buffer.set_line(area.x, area.y, line, area.width);
    }
}

/// Who answers.
fn head(status: &Status, width: u16) -> Line<'static> {
    let draining = match status.draining {
        true => ", draining",
        false => "",
    };
    let text = format!(
        "host {} in {}{draining}, instance {}, version {}, up {}",
        status.host,
        status.domain,
        status.instance,
        status.version,
        span(status.uptime_s)
    );
    let name = "homing top";
    let space = usize::from(width).saturating_sub(text.chars().count() + name.len());
    let text = match space {
        0 | 1 => text,
        _ => format!("{text}{}{name}", " ".repeat(space)),
    };
    Line::styled(text, BAR)
}

/// How it is, how old that is, and what to look at.
fn state(model: &Model, picture: &Picture, now: Duration, area: Rect) -> Vec<Line<'static>> {
    let status = &picture.watch.status;
    let width = usize::from(area.width);
    let problems = match status.problems.len() {
        0 => "no problems".to_owned(),
        1 => "1 problem".to_owned(),
        some => format!("{some} problems"),
    };
    let hosts = members(&status.members);
    let every = match model.is_paused() {
        true => "held: Space goes on".to_owned(),
        false => format!("every {:?}", model.interval()),
    };
    let style = match status.problems.is_empty() {
        true => PLAIN,
        false => BAD,
    };
    let mut lines = vec![Line::from(vec![
        Span::styled(problems, style),
        Span::raw(format!("; hosts: {hosts}; {every}")),
    ])];
    if let Some(age) = model.stale(now) {
        let why = model.trouble().unwrap_or("the agent takes its time");
        let text = format!("NO ANSWER, this is {} old: {why}", span(age.as_secs()));
        let wrapped = wrap(&text, width).into_iter().take(2);
        lines.extend(wrapped.map(|line| Line::styled(line, BAD.patch(BOLD))));
    }
    let room = usize::from(area.height) / PROBLEMS_SHARE;
    let mut rest = status.problems.len();
    let mut told = Vec::new();
    for problem in &status.problems {
        let wrapped = wrap(&format!("! {problem}"), width);
        // The last line says how many have no room.
        let needed = told.len() + wrapped.len() + usize::from(rest > 1);
        if needed > room {
            break;
        }
        told.extend(wrapped);
        rest -= 1;
    }
    if rest > 0 && room > 0 {
        told.push(match told.is_empty() {
            true => format!("! {}", status.problems[0]),
            false => format!("! and {rest} more: homing status"),
        });
    }
    lines.extend(told.into_iter().map(|line| Line::styled(line, BAD)));
    lines
}

/// The screens, and how far the list has been moved.
fn screens(model: &Model, extent: Extent) -> Line<'static> {
    let mut spans = Vec::new();
    for (number, screen) in Screen::ALL.into_iter().enumerate() {
        let style = match screen == model.screen() {
            true => BAR,
            false => PLAIN,
        };
        spans.push(Span::styled(
            format!(" {} {} ", number + 1, screen.label()),
            style,
        ));
        spans.push(Span::raw(" "));
    }
    if extent.rows > extent.room && extent.room > 0 {
        let first = model.at().min(extent.last());
        let text = format!(
            " {} to {} of {}",
            first + 1,
            first + extent.room,
            extent.rows
        );
        spans.push(Span::raw(text));
    }
    Line::from(spans)
}

fn keys_line(model: &Model) -> Line<'static> {
    let keys = match model.shows_help() {
        true => "? back  q quit",
        false => "q quit  Tab next  Up/Down move  Space hold  +/- interval  z zeros  ? keys",
    };
    Line::styled(keys, BAR)
}

fn help() -> Body {
    let mut lines = vec![Line::styled("Keys", BOLD)];
    let width = keys::HELP.iter().map(|(key, _)| key.len()).max();
    let width = width.unwrap_or(0);
    lines.extend(
        keys::HELP
            .iter()
            .map(|(key, what)| Line::raw(format!("{key:width$}  {what}"))),
    );
    Body {
        fixed: Vec::new(),
        rows: lines.len(),
        shown: lines,
    }
}

/// Breaks a text between words, so that no line is wider; a word that is gets cut where
/// it is drawn.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            // What goes on stands further right.
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests;
