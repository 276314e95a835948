//! Man pages, made from the description of the command line, as completions are.
//!
//! `homing man FOLDER` is for those who make packages, so the help does not show it.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory as _;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use super::args::Cli;

/// All of them are of user commands.
const SECTION: &str = "1";

/// Writes `homing.1`, and a page for each command, into a folder that there is.
pub fn write(folder: &Path) -> io::Result<()> {
    // `homing help` is `--help` once more.
    let mut homing = Cli::command().disable_help_subcommand(true);
    homing.build();
    pages(&homing, &[], folder)
}

/// The page of a command and those of its own commands. `above` are the names of the pages
/// of those that it belongs to.
fn pages(command: &clap::Command, above: &[String], folder: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut file = File::create(folder.join(format!("{name}.{SECTION}")))?;
    page(command, above, &mut file)?;
    file.flush()?;
    let above = [above, &[name.to_owned()]].concat();
    let commands = command.get_subcommands();
    for command in commands.filter(|command| !command.is_hide_set()) {
        pages(command, &above, folder)?;
    }
    Ok(())
}

fn page(command: &clap::Command, above: &[String], out: &mut dyn Write) -> io::Result<()> {
    let man = Man::new(command.clone())
        .section(SECTION)
        .source(concat!("Homing ", env!("CARGO_PKG_VERSION")))
        .manual("Homing");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if command.get_subcommands().any(|inner| !inner.is_hide_set()) {
        man.render_subcommands_section(out)?;
    }
    if let Some(help) = command.get_after_long_help() {
        sections(&help.to_string()).to_writer(out)?;
    }
    let mut also = Roff::new();
    also.control("SH", ["SEE ALSO"]);
    let above = above.iter().map(|name| format!("{name}({SECTION})"));
    let mut others: Vec<_> = above.collect();
    others.extend(["systemctl(1)", "bpftool(8)"].map(str::to_owned));
    also.text([roman(others.join(", "))]);
    also.text([roman("")]);
    also.text([roman("file:///usr/share/doc/homing/operating.md")]);
    also.to_writer(out)
}

/// What stands at the end of a help: headings with a colon, each with lines that stay as
/// they are.
fn sections(help: &str) -> Roff {
    let mut page = Roff::new();
    for line in help.lines() {
        match line.strip_suffix(':') {
            Some(heading) if !heading.starts_with(' ') => {
                page.control("SH", [heading.to_uppercase().as_str()]);
                page.control("nf", []);
            }
            // The next heading ends what stays as it is.
            _ if line.is_empty() => {
                page.control("fi", []);
            }
            _ => {
                page.text([roman(line)]);
            }
        }
    }
    page.control("fi", []);
    page
}
