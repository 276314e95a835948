//! The way from what is pinned to what this build wants, one step at a time.
//!
//! Maps that are as they should be stay. Where one is not (another build, another
//! limit in the configuration), a new map is made beside it and filled; the programs
//! are loaded with the new maps and put in the place of the old ones; what the old
//! programs wrote meanwhile is filled in; then the new maps take the pins of the old
//! ones. Packets go on being forwarded all along: until the links are updated by the
//! old programs with the old maps, then by the new ones with the new.
//!
//! After any step the process may die. What is left is found by the next start
//! ([`Step::Recover`]): new maps that no attached program uses are dropped; new maps
//! that are in use, be it by one program of several, are put in the place of the old.
//! What was recorded only in an old map is filled in then; a session that was closed
//! in between comes back that way, and goes again when the agent compares with the
//! kernel's sockets.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::PathBuf,
    thread,
};

use aya::{Ebpf, EbpfLoader, maps::MapInfo};

use super::{
    LoadOptions,
    attach::{self, name_of, pin_of},
    fill::{Carry, Kind, fill},
    list,
    programs::{self, EGRESS_PROGRAM, SILENCE_PROGRAM, SOCKOPS_PROGRAM, XDP_PROGRAM},
    wanted::{LAYOUT, Wanted, read_layouts, write_layouts},
};
use crate::datapath::{
    Error,
    hosts::REST,
    link::{self, Attached, How, Point},
    owners,
    pins::{Lock, Pins},
    sys,
};

/// A step on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ends or undoes what an interrupted load left.
    Recover,
    /// Compares what is pinned with what is wanted, and decides on the further steps.
    Compare,
    /// Makes the maps that are missing, and new ones beside those that differ.
    Create,
    /// Carries over what is in a map that differs.
    Fill(String),
    /// Has the kernel verify the programs.
    Load,
    /// Pins a program in the place of its predecessor.
    Pin(&'static str),
    /// Attaches a program, or puts it in the place of the one that is attached.
    Attach(usize),
    /// Carries over what the old programs wrote since.
    Refill(String),
    /// Gives a new map the pin of the old one.
    Settle(String),
    /// Removes what is no longer wanted.
    Clean,
}

/// A load that is under way. Dropping it is as good, or as bad, as dying.
pub struct Load<'a> {
    options: &'a LoadOptions,
    object: &'a [u8],
    pins: Pins,
    lock: Lock,
    points: Vec<Point>,
    wanted: Wanted,
    steps: VecDeque<Step>,
    /// Maps that give way, by name, and how their entries get into the new ones.
    changes: Vec<(String, Option<Carry>)>,
    ebpf: Option<Ebpf>,
    attached: Vec<Attached>,
}

/// What a finished load gives to whoever opens the maps.
pub(super) struct Loaded {
    pub ebpf: Ebpf,
    pub attached: Vec<Attached>,
    pub pins: Pins,
    pub lock: Lock,
}

/// Maps that only the agent writes: they do not change while no agent runs.
const OF_THE_AGENT: [&str; 2] = ["SERVICES", "MOVING"];
/// The map that no program uses.
const OF_NO_PROGRAM: &str = "IDENTITY";

impl<'a> Load<'a> {
    /// Checks what can be checked, and takes the instance's lock. Nothing is changed
    /// yet. `object`: the kernel programs.
    pub fn begin(options: &'a LoadOptions, object: &'a [u8]) -> Result<Self, Error> {
        let points = attach::points(options)?;
        let pins = Pins::new(&options.pin_dir);
        let lock = pins.create()?;
        let wanted = Wanted::of(options, object)?;
        Ok(Self {
            options,
            object,
            pins,
            lock,
            points,
            wanted,
            steps: [Step::Recover, Step::Compare].into(),
            changes: Vec::new(),
            ebpf: None,
            attached: Vec::new(),
        })
    }

    /// Takes the next step and says which it was; `None`: there was none left.
    pub fn step(&mut self) -> Result<Option<Step>, Error> {
        let Some(step) = self.steps.pop_front() else {
            return Ok(None);
        };
        match self.take(&step) {
            Ok(()) => Ok(Some(step)),
            Err(error) => {
                self.steps.clear();
                if self.attached.is_empty() {
                    // Not in use yet. If it cannot be removed, the next start will.
                    let _ = self.remove_new();
                }
                Err(error)
            }
        }
    }

    /// Takes all steps that are left.
    pub(super) fn finish(mut self) -> Result<Loaded, Error> {
        while self.step()?.is_some() {}
        let Some(ebpf) = self.ebpf else {
            return Err(Error::Load {
                why: "it was given up before".into(),
            });
        };
        Ok(Loaded {
            ebpf,
            attached: self.attached,
            pins: self.pins,
            lock: self.lock,
        })
    }

    fn take(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Recover => self.recover(),
            Step::Compare => self.compare(),
            Step::Create => self.create(),
            Step::Fill(name) => self.fill(name, "carried over"),
            Step::Load => programs::load(self.ebpf()?),
            Step::Pin(name) => {
                let pins = self.pins.clone();
                programs::pin(&pins, name, programs::fd(self.ebpf()?, name)?)
            }
            Step::Attach(index) => self.attach(*index),
            Step::Refill(name) => self.refill(name),
            Step::Settle(name) => self.settle(name),
            Step::Clean => self.clean(),
        }
    }

    /// The object, once its maps are made.
    fn ebpf(&mut self) -> Result<&mut Ebpf, Error> {
        self.ebpf.as_mut().ok_or_else(|| Error::Load {
            why: "its maps were not made".into(),
        })
    }

    fn recover(&mut self) -> Result<(), Error> {
        let mut left = list(&self.pins.new_maps())?;
        if left.is_empty() {
            return Ok(());
        }
        // All others had their pins, or nothing but this was about to change.
        if left.iter().all(|pin| name_of(pin) == LAYOUT) {
            return self.settle(LAYOUT);
        }
        let used = self.used_maps()?;
        let is_used =
            |pin: &PathBuf| MapInfo::from_pin(pin).is_ok_and(|info| used.contains(&info.id()));
        if !left.iter().any(is_used) {
            tracing::info!(
                maps = left.len(),
                "removing maps of a start that was interrupted"
            );
            return self.remove_new();
        }
        tracing::warn!(
            maps = left.len(),
            fix = "nothing: this start ends what that one began",
            "a start was interrupted after programs had been replaced"
        );
        self.reconcile(&left)?;
        // As in `in_order`: what is in use last.
        left.sort_by_key(is_used);
        let names = left.iter().map(|pin| name_of(pin).to_owned());
        for name in in_order(names) {
            self.settle(&name)?;
        }
        Ok(())
    }

    /// The ids of the maps that attached programs use.
    fn used_maps(&self) -> Result<BTreeSet<u32>, Error> {
        let mut running = BTreeSet::new();
        for pin in list(&self.pins.links())? {
            let link = sys::open_pin(&pin).map_err(Error::pin("open the link", &pin))?;
            let info = sys::link_info(std::os::fd::AsFd::as_fd(&link));
            running.insert(
                info.map_err(Error::pin("examine the link", &pin))?
                    .program_id,
            );
        }
        let mut used = BTreeSet::new();
        for pin in list(&self.pins.programs())? {
            let program = sys::open_pin(&pin).map_err(Error::pin("open the program", &pin))?;
            let found = sys::id_and_maps_of(std::os::fd::AsFd::as_fd(&program));
            let (id, maps) = found.map_err(Error::pin("examine the program", &pin))?;
            if running.contains(&id) {
                used.extend(maps);
            }
        }
        Ok(used)
    }

    /// Fills what the old maps have into new ones that are in use already.
    fn reconcile(&self, new_pins: &[PathBuf]) -> Result<(), Error> {
        let layouts = |pin: PathBuf| read_layouts(&pin).map_err(Error::pin("read", &pin));
        let old = layouts(self.pins.maps().join(LAYOUT))?;
        let new = match self.pins.new_maps().join(LAYOUT) {
            pin if pin.exists() => layouts(pin)?,
            _ => old.clone(),
        };
        for new_pin in new_pins {
            let name = name_of(new_pin);
            let old_pin = self.pins.maps().join(name);
            if name == LAYOUT || OF_THE_AGENT.contains(&name) || !old_pin.exists() {
                continue;
            }
            let made = Wanted::found(name, new_pin, &new)?;
            let change = made.change(name, &old_pin, &old)?;
            if let Some(carry) = change.and_then(|change| change.carry)
                && carry.kind == Kind::Hash
            {
                report(name, &old_pin, new_pin, &carry, "carried over late")?;
            }
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<(), Error> {
        let layout = self.pins.maps().join(LAYOUT);
        let old = read_layouts(&layout).map_err(Error::pin("read", &layout))?;
        for name in self.wanted.shapes.keys() {
            let pin = self.pins.maps().join(name);
            if !pin.exists() {
                continue;
            }
            if let Some(change) = self.wanted.change(name, &pin, &old)? {
                tracing::info!(
                    map = name,
                    keeps_entries = change.carry.is_some(),
                    "the map is another in this build or configuration: a new one takes its place"
                );
                self.changes.push((name.clone(), change.carry));
            }
        }
        if old != self.wanted.layouts {
            self.changes.push((LAYOUT.to_owned(), None));
        }
        let carried = || self.changes.iter().filter(|(_, carry)| carry.is_some());
        let kernels = carried().filter(|(name, carry)| {
            let hash = carry.as_ref().is_some_and(|carry| carry.kind == Kind::Hash);
            hash && !OF_THE_AGENT.contains(&name.as_str())
        });
        let names = in_order(self.changes.iter().map(|(name, _)| name.clone()));
        let programs = [
            XDP_PROGRAM,
            EGRESS_PROGRAM,
            SILENCE_PROGRAM,
            SOCKOPS_PROGRAM,
        ];
        let steps = [Step::Create]
            .into_iter()
            .chain(carried().map(|(name, _)| Step::Fill(name.clone())))
            .chain([Step::Load])
            .chain(programs.map(Step::Pin))
            .chain((0..self.points.len()).map(Step::Attach))
            .chain(kernels.map(|(name, _)| Step::Refill(name.clone())))
            .chain(names.into_iter().map(Step::Settle))
            .chain([Step::Clean]);
        self.steps = steps.collect();
        Ok(())
    }

    fn create(&mut self) -> Result<(), Error> {
        let pin_of_map = |name: &str| {
            let changes = self.changes.iter().any(|(changed, _)| changed == name);
            match changes {
                true => self.pins.new_maps().join(name),
                false => self.pins.maps().join(name),
            }
        };
        let mut loader = EbpfLoader::new();
        for (name, shape) in &self.wanted.shapes {
            loader
                .map_pin_path(name, pin_of_map(name))
                .map_max_entries(name, shape.entries);
        }
        let ebpf = loader
            .override_global("SETTINGS", &self.options.settings, true)
            .load(self.object)
            .map_err(|error| Error::Load {
                why: programs::why(&error),
            })?;
        if self.changes.iter().any(|(name, _)| name == LAYOUT) {
            let pin = self.pins.new_maps().join(LAYOUT);
            write_layouts(&pin, &self.wanted.layouts).map_err(Error::pin("write", &pin))?;
        }
        let find = |name| ebpf.map(name).ok_or_else(|| programs::lacks(name));
        let folder = self.pins.tables();
        let tables = owners::Maps::find(find)?.pinned_in(&folder);
        owners::provide(&tables).map_err(|error| Error::Map {
            name: "OWNERS",
            error,
        })?;
        self.ebpf = Some(ebpf);
        Ok(())
    }

    fn fill(&self, name: &str, how: &str) -> Result<(), Error> {
        let carry = self.changes.iter().find(|(changed, _)| changed == name);
        let Some((_, Some(carry))) = carry else {
            return Ok(());
        };
        let (old, new) = (self.pins.maps().join(name), self.pins.new_maps().join(name));
        report(name, &old, &new, carry, how)
    }

    fn attach(&mut self, index: usize) -> Result<(), Error> {
        let (pins, point) = (self.pins.clone(), self.points[index].clone());
        match attach::attach(&pins, self.ebpf()?, point) {
            Ok(attached) => {
                self.attached.extend(attached);
                Ok(())
            }
            Err(error) => {
                for link in self.attached.iter().filter(|link| link.how == How::New) {
                    // What matters is why attaching failed.
                    let _ = link::remove(&pin_of(&self.pins, &link.to));
                }
                Err(error)
            }
        }
    }

    fn refill(&self, name: &str) -> Result<(), Error> {
        // Programs that were running when they were replaced may still write.
        if !sys::grace_period() {
            thread::sleep(REST);
        }
        self.fill(name, "carried over, written meanwhile")
    }

    fn settle(&self, name: &str) -> Result<(), Error> {
        let (new, pin) = (self.pins.new_maps().join(name), self.pins.maps().join(name));
        fs::rename(&new, &pin).map_err(Error::pin("rename to", &pin))
    }

    fn clean(&self) -> Result<(), Error> {
        attach::remove_old(&self.pins, &self.attached, |map| {
            map == LAYOUT || self.wanted.shapes.contains_key(map)
        })
    }

    fn remove_new(&self) -> Result<(), Error> {
        let left = list(&self.pins.new_maps())?;
        let names = left.iter().map(|pin| name_of(pin).to_owned());
        // The description first: alone, it would be taken for what is left at the end.
        for name in in_order(names).iter().rev() {
            let pin = self.pins.new_maps().join(name);
            fs::remove_file(&pin).map_err(Error::pin("remove", &pin))?;
        }
        Ok(())
    }
}

/// The order in which new maps take the pins of the old ones: their description last,
/// since that of the old ones is needed as long as there are any. And what no program
/// uses first: as long as a new map in use is left, the next start ends what was begun,
/// and does not take what is left for new maps that never came into force.
fn in_order(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| (name == LAYOUT, name != OF_NO_PROGRAM));
    names
}

fn report(
    name: &str,
    old: &std::path::Path,
    new: &std::path::Path,
    carry: &Carry,
    how: &str,
) -> Result<(), Error> {
    let carried = fill(old, new, carry).map_err(Error::pin("fill", new))?;
    let (no_room, no_fit) = (carried.no_room, carried.no_fit);
    match no_room + no_fit {
        0 => tracing::info!(map = name, entries = carried.copied, "{how}"),
        _ => tracing::warn!(
            map = name,
            entries = carried.copied,
            no_room,
            no_fit,
            fix = "raise the limit of that table, if no_room is not 0; sessions that found no place are asked for, or recorded within a minute",
            "{how}, but not all of it"
        ),
    }
    Ok(())
}
