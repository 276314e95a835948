//! Rows in columns.

use ratatui::{
    style::{Modifier, Style},
    text::{Line, Span},
};

/// Rows whose cells stand under each other, as wide as they need.
pub(super) struct Grid {
    heads: Vec<&'static str>,
    rows: Vec<(Style, Vec<String>)>,
}

/// Between columns.
const GAP: usize = 2;

impl Grid {
    /// With these columns; those whose name begins with `>` are aligned to the right.
    pub(super) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; a cell for each column.
    pub(super) fn row(&mut self, style: Style, cells: impl IntoIterator<Item = String>) {
        self.rows.push((style, cells.into_iter().collect()));
    }

    /// The line of names, and the rows.
    pub(super) fn lines(self) -> Vec<Line<'static>> {
        let Self { heads, rows } = self;
        let names = heads.iter().map(|head| head.trim_start_matches('>'));
        let names: Vec<_> = names.map(str::to_owned).collect();
        let head = (Style::new().add_modifier(Modifier::BOLD), names);
        let all: Vec<_> = std::iter::once(head).chain(rows).collect();
        let widths: Vec<_> = (0..heads.len())
            .map(|i| {
                let cells = all.iter().filter_map(|(_, cells)| cells.get(i));
                cells.map(|cell| Span::raw(cell).width()).max().unwrap_or(0)
            })
            .collect();
        let lines = all.into_iter().map(|(style, cells)| {
            let mut text = String::new();
            for ((cell, head), width) in cells.iter().zip(&heads).zip(&widths) {
                let space = width.saturating_sub(Span::raw(cell).width());
                let (before, behind) = match head.starts_with('>') {
                    true => (space, 0),
                    false => (0, space),
                };
                text.extend(std::iter::repeat_n(' ', before));
                text += cell;
                text.extend(std::iter::repeat_n(' ', behind + GAP));
            }
            Line::styled(text.trim_end().to_owned(), style)
        });
        lines.collect()
    }
}
