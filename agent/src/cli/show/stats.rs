//! Counters as people read them.

use crate::{
    admin::api::Stats,
    cli::{
        rates::{self, OUTCOMES, Rates},
        table::{Style, Table},
    },
};

/// Counters, and with `rates` a column of how often each has counted in a second.
pub(in crate::cli) fn stats(
    stats: &Stats,
    rates: Option<&Rates>,
    all: bool,
    style: Style,
) -> String {
    let mut outcomes = Columns::new(style, ["OUTCOME", "VERDICT", ">PACKETS"], rates);
    for outcome in stats.outcomes.iter().filter(|o| all || o.packets > 0) {
        outcomes.row(
            [
                outcome.name.clone(),
                outcome.verdict.clone(),
                outcome.packets.to_string(),
            ],
            (OUTCOMES, &outcome.name),
            &outcome.help,
        );
    }
    let mut counters = Columns::new(style, ["COUNTER", ">COUNT"], rates);
    for counted in rates::counters(stats).filter(|counted| all || counted.count > 0) {
        counters.row(
            [counted.full_name().into_owned(), counted.count.to_string()],
            (counted.part, &counted.name),
            counted.help,
        );
    }
    let parts: Vec<_> = [outcomes.text(), counters.text()]
        .into_iter()
        .flatten()
        .collect();
    if parts.is_empty() {
        return "all counters are zero; --all shows them".to_owned();
    }
    parts.join("\n\n")
}

/// A table of counters.
struct Columns<'a> {
    table: Table,
    rates: Option<&'a Rates>,
    rows: usize,
}

impl<'a> Columns<'a> {
    fn new<const N: usize>(style: Style, first: [&str; N], rates: Option<&'a Rates>) -> Self {
        let mut columns = first.to_vec();
        columns.extend(rates.map(|_| ">PER S"));
        columns.push("MEANING");
        Self {
            table: Table::new(style, &columns),
            rates,
            rows: 0,
        }
    }

    fn row<const N: usize>(&mut self, first: [String; N], of: (&str, &str), help: &str) {
        let mut cells = first.to_vec();
        cells.extend(self.rates.map(|rates| rates::shown(rates.of(of.0, of.1))));
        cells.push(help.to_owned());
        self.table.row(cells);
        self.rows += 1;
    }

    /// The table's text, if it has rows.
    fn text(&self) -> Option<String> {
        (self.rows > 0).then(|| self.table.text())
    }
}
