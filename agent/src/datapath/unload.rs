//! Takes the fast path away: every link, program and map of an instance.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, link, load::list, pins::Pins};

/// What [`unload`] removed. Empty if nothing was there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Pins of links: their programs are detached.
    pub links: Vec<PathBuf>,
    /// Pins of programs.
    pub programs: Vec<PathBuf>,
    /// Pins of maps: what they held is forgotten.
    pub maps: Vec<PathBuf>,
}

impl Report {
    /// Whether nothing was there.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty() && self.programs.is_empty() && self.maps.is_empty()
    }
}

/// Removes everything that is pinned in `pin_dir`, and that folder. Refuses while
/// an agent holds it. When it is called again, or after it was interrupted, it
/// removes what is left.
pub fn unload(pin_dir: &Path) -> Result<Report, Error> {
    let pins = Pins::new(pin_dir);
    let mut report = Report::default();
    let Some(_lock) = pins.lock()? else {
        return Ok(report);
    };
    // Links first: from then on no program runs that would miss its maps.
    for pin in list(&pins.links())? {
        link::remove(&pin)?;
        report.links.push(pin);
    }
    for pin in list(&pins.programs())? {
        fs::remove_file(&pin).map_err(Error::pin("remove", &pin))?;
        report.programs.push(pin);
    }
    let maps = [pins.maps(), pins.new_maps(), pins.tables()];
    let maps = maps.iter().map(|folder| list(folder));
    for pin in maps.collect::<Result<Vec<_>, _>>()?.concat() {
        fs::remove_file(&pin).map_err(Error::pin("remove", &pin))?;
        report.maps.push(pin);
    }
    for folder in [
        pins.links(),
        pins.programs(),
        pins.maps(),
        pins.new_maps(),
        pins.tables(),
        pin_dir.into(),
    ] {
        remove_folder(&folder)?;
    }
    // The folder of all instances goes with the last one. If it does not, it is
    // in use or it is the file system itself.
    if let Some(parent) = pin_dir.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(report)
}

fn remove_folder(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::pin("remove", folder)(error))
        }
        _ => Ok(()),
    }
}
