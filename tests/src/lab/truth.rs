//! What the kernels hold, read from their maps, and whether it is the truth: every
//! host's `OWNERS` must name, for each session that another host has in its
//! `SESSIONS`, that host, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use homing_agent::datapath::owners::{self as table, Maps, Tables as OwnerTables};
use homing_common::{
    owners,
    session::{Session, Tuple},
};

use super::{Lab, Node, state::Process};

/// One host's tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    /// The ids of its own sessions.
    pub sessions: BTreeSet<u64>,
    /// The owners of others, by session id.
    pub owners: BTreeMap<u64, u16>,
}

impl Lab {
    /// What a host's kernel holds, be its agent up or not. Tables that change while
    /// they are read may be read with entries missing.
    pub fn tables(&self, host: u16) -> Result<Tables> {
        let mut tables = Tables::default();
        let sessions: HashMap<MapData, Tuple, Session> = self.map(host, "SESSIONS")?.try_into()?;
        for session in sessions.iter() {
            tables.sessions.insert(session?.1.id.0);
        }
        if let Some(found) = self.owners(host)? {
            owners::each(&found, |id, host| {
                tables.owners.insert(id.0, host.0);
            });
        }
        Ok(tables)
    }

    /// A host's table of owners, to be read.
    pub fn owners(&self, host: u16) -> Result<Option<OwnerTables>> {
        let outer = &self.map(host, "OWNERS")?;
        let header = &self.map(host, "OWNERS_HEADER")?;
        Ok(table::read(&Maps::new(outer, header))?)
    }

    /// A map of a host's kernel, which need not have an agent.
    pub fn map(&self, host: u16, name: &str) -> Result<Map> {
        let path = self.pins(host)?.join("maps").join(name);
        let map = MapData::from_pin(&path)
            .with_context(|| format!("cannot open {name} of h{host} at {}", path.display()))?;
        Ok(Map::from_map_data(map)?)
    }

    /// Where a host's programs, links and maps are pinned, as seen from here.
    pub fn pins(&self, host: u16) -> Result<PathBuf> {
        let keeper = self.state.keepers.get(&Node::Host(host).to_string());
        let keeper = keeper
            .filter(|keeper: &&Process| keeper.alive())
            .with_context(|| format!("the lab has no host {host}"))?;
        Ok(format!("/proc/{}/root/sys/fs/bpf/homing/homing", keeper.pid).into())
    }

    /// Where the hosts' tables differ from the truth: a line for each host and kind
    /// of difference. Empty: all of them are right.
    pub fn untruths(&self) -> Result<Vec<String>> {
        self.untruths_but(&[])
    }

    /// The same without the tables of some hosts. Their sessions count.
    fn untruths_but(&self, without: &[u16]) -> Result<Vec<String>> {
        let all = (1..=self.plan().hosts)
            .map(|host| Ok((host, self.tables(host)?)))
            .collect::<Result<BTreeMap<u16, Tables>>>()?;
        let mut lines = Vec::new();
        for (host, tables) in all.iter().filter(|(host, _)| !without.contains(host)) {
            let truth: BTreeMap<u64, u16> = all
                .iter()
                .filter(|(other, _)| *other != host)
                .flat_map(|(other, theirs)| theirs.sessions.iter().map(|id| (*id, *other)))
                .collect();
            let missing = truth.keys().filter(|id| !tables.owners.contains_key(id));
            let extra = tables.owners.keys().filter(|id| !truth.contains_key(id));
            let wrong = truth
                .iter()
                .filter(|(id, owner)| tables.owners.get(id).is_some_and(|had| had != *owner));
            for (what, count) in [
                ("misses", missing.count()),
                ("has too many:", extra.count()),
                ("has the wrong owner of", wrong.count()),
            ] {
                if count > 0 {
                    lines.push(format!("h{host} {what} {count} of {}", truth.len()));
                }
            }
        }
        Ok(lines)
    }

    /// Waits until every host's tables are the truth, and says how long that took.
    pub fn wait_truth(&self, timeout: Duration) -> Result<Duration> {
        self.wait_truth_but(&[], timeout)
    }

    /// The same without the tables of some hosts.
    pub fn wait_truth_but(&self, without: &[u16], timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let untruths = self.untruths_but(without)?;
            let took = start.elapsed();
            if untruths.is_empty() {
                return Ok(took);
            }
            if took > timeout {
                bail!("not true after {timeout:?}: {}", untruths.join("; "));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
