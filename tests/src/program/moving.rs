//! Sessions that are moving, as the programs see them.

use anyhow::{Result, bail};
use aya::maps::HashMap;
use homing_common::{
    control::Control,
    moving::{Moving, Phase},
    park::Parked,
    session::Tuple,
};

use super::{Program, TCX_NEXT};

/// What the egress program returns for a packet that does not leave.
const TCX_DROP: i32 = 2;

impl Program {
    /// Makes a session move between this host and `peer`.
    pub fn set_moving(&mut self, session: Tuple, phase: Phase, peer: u16) -> Result<()> {
        let moving = Moving {
            number: 7,
            since_ns: 0,
            generation: 0,
            peer,
            phase: phase as u8,
            zero: 0,
        };
        self.control(|control| control.flags |= Control::MOVING)?;
        let mut map: HashMap<_, Tuple, Moving> = self.map("MOVING")?.try_into()?;
        Ok(map.insert(session, moving, 0)?)
    }

    /// Makes a session move no more.
    pub fn clear_moving(&mut self, session: &Tuple) -> Result<()> {
        let mut map: HashMap<_, Tuple, Moving> = self.map("MOVING")?.try_into()?;
        // There may be none.
        let _ = map.remove(session);
        Ok(())
    }

    /// Takes the packets of moving sessions that were parked for the agent.
    pub fn held(&mut self) -> Result<Vec<(Parked, Vec<u8>)>> {
        self.records("PARKED")
    }

    /// Whether a frame that this host sends leaves.
    pub fn leaves(&mut self, frame: &[u8]) -> Result<bool> {
        match self.egress(frame)?.0 {
            TCX_NEXT => Ok(true),
            TCX_DROP => Ok(false),
            other => bail!("the egress program returned {other}"),
        }
    }
}
