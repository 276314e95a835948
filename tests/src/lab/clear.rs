//! Taking labs down, in whatever state they are.

use std::fs;

use anyhow::{Context, Result};

use super::{
    net, node,
    state::{self, State},
};

/// Takes down the lab of this name, in whatever state it is. Returns whether there
/// was anything.
pub fn down(name: &str) -> Result<bool> {
    let _lock = state::lock(name)?;
    let any = state::run_folder(name).exists()
        || !node::namespaces(name).is_empty()
        || node::labs_with_cgroups()?.iter().any(|lab| lab == name);
    clear(name)?;
    Ok(any)
}

/// Removes whatever there is of a lab. The lab must be locked.
pub(super) fn clear(name: &str) -> Result<()> {
    node::remove_cgroups(name)?;
    net::remove_namespaces(name)?;
    let folder = state::run_folder(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Clears labs whose owner, a program that has since been killed, left them.
pub(super) fn clear_dead_labs() -> Result<()> {
    for name in state::all()? {
        let dead = |state: &State| state.owner.is_some_and(|owner| !owner.alive());
        if State::read(&name)?.as_ref().is_some_and(dead) {
            let _lock = state::lock(&name)?;
            // Another process may have done it, and built a new one, meanwhile.
            if State::read(&name)?.as_ref().is_some_and(dead) {
                clear(&name)?;
            }
        }
    }
    Ok(())
}
