//! The one table printer.

use comfy_table::{
    Cell, CellAlignment, ContentArrangement, Table as Inner,
    presets::{NOTHING, UTF8_FULL_CONDENSED},
};

/// How tables look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// With lines, for people.
    Lines,
    /// Columns with spaces between them, for pipes.
    Plain,
}

/// A table with one line per row.
pub(super) struct Table {
    inner: Inner,
}

impl Table {
    /// A table with these columns; those whose name begins with `>` hold numbers
    /// and are aligned to the right.
    pub(super) fn new(style: Style, columns: &[&str]) -> Self {
        let mut inner = Inner::new();
        inner.load_style(match style {
            Style::Lines => UTF8_FULL_CONDENSED,
            Style::Plain => NOTHING,
        });
        inner.set_content_arrangement(ContentArrangement::Disabled);
        inner.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
        for (i, name) in columns.iter().enumerate() {
            let column = inner.column_mut(i).expect("the header made it");
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if style == Style::Plain {
                column.set_padding((0, 2));
            }
        }
        Self { inner }
    }

    /// Adds a row, with one cell per column.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A line feed would break the row.
        let cells = cells.into_iter();
        let cells = cells.map(|cell| Cell::new(cell.replace('\n', " ")));
        self.inner.add_row(cells);
    }

    /// The table's text, without a line feed at its end.
    pub(super) fn text(&self) -> String {
        self.inner.trim_fmt()
    }
}

/// Names and what they stand for, one per line.
pub(super) fn list(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}
