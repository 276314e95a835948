//! `MEMBERS`: the members as last heard of, for the agent's next start.

use std::io;

use aya::maps::{Array, Map, MapData};
use homing_common::{
    host::{HostId, MAX_HOSTS},
    maps::KnownMember,
};

use super::map_io;

/// The place where what is known of members outlives the agent.
pub struct MembersMap {
    map: Array<MapData, KnownMember>,
}

impl MembersMap {
    pub(super) fn open(map: Map) -> io::Result<Self> {
        let map = Array::try_from(map).map_err(map_io)?;
        Ok(Self { map })
    }

    /// All members that are written down.
    pub fn read(&self) -> io::Result<Vec<(HostId, KnownMember)>> {
        let mut members = Vec::new();
        for host in 1..MAX_HOSTS {
            let member = self.map.get(&host, 0).map_err(map_io)?;
            if member.incarnation != 0 {
                members.push((HostId(host as u16), member));
            }
        }
        Ok(members)
    }

    /// Writes a member down, or that there is none.
    pub fn write(&mut self, host: HostId, member: Option<KnownMember>) -> io::Result<()> {
        let member = member.unwrap_or_default();
        let index = u32::from(host.0);
        self.map.set(index, member, 0).map_err(map_io)
    }
}
