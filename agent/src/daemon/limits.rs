//! What the configuration makes of the limits of moves, applications and messages.

use crate::{
    config::{Config, Mux},
    migration::{self, app},
    mux::sockets,
};

/// What bounds this host's moves.
pub(super) fn of_moves(config: &Config) -> migration::Limits {
    let moves = usize::from(config.migration.moves);
    let limits = migration::Limits {
        from_here: moves,
        to_here: moves,
        bytes: config.migration.memory,
        ..migration::Limits::default()
    };
    limits.outlasting(config.pop.kernel_dead_after)
}

/// What applications may use of the agent: enough for all moves, if there is but one.
pub(super) fn of_apps(config: &Config) -> app::Limits {
    let defaults = app::Limits::default();
    app::Limits {
        moves: defaults.moves.max(2 * config.migration.moves),
        blob: config.apps.state_max,
        blobs: 2 * config.migration.memory,
        ..defaults
    }
}

/// What bounds message sockets.
pub(super) fn of_sockets(mux: &Mux) -> sockets::Limits {
    sockets::Limits {
        sockets: mux.sockets,
        message_max: mux.message_max,
        held_total: mux.memory,
        unread_total: mux.memory,
        ..sockets::Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use homing_client::wire::MOVES_CEILING;
    use homing_common::moving::MOVING_ENTRIES;

    use super::*;
    use crate::config::MOVES_MAX;

    fn config() -> Config {
        let text = include_str!("../../../dist/homing.toml");
        Config::parse(Path::new("homing.toml"), text).expect("the example is good")
    }

    #[test]
    fn the_defaults_are_those_of_the_parts() {
        let config = config();
        assert_eq!(of_moves(&config), migration::Limits::default());
        let apps = app::Limits {
            blobs: 2 * config.migration.memory,
            ..app::Limits::default()
        };
        assert_eq!(of_apps(&config), apps);
        assert_eq!(of_sockets(&config.mux), sockets::Limits::default());
    }

    #[test]
    fn as_many_moves_as_can_be_configured_find_room() {
        let mut config = config();
        config.migration.moves = MOVES_MAX;
        let moves = of_moves(&config);
        let entries = moves.from_here + moves.to_here + moves.settling;
        assert!(entries <= MOVING_ENTRIES as usize, "{entries}");
        let pending = of_apps(&config).moves;
        assert_eq!(usize::from(pending), moves.from_here + moves.to_here);
        assert!(pending <= MOVES_CEILING);
    }

    #[test]
    fn moves_wait_for_a_kernel_to_be_found_dead() {
        let mut config = config();
        config.pop.kernel_dead_after = Duration::from_secs(60);
        assert_eq!(of_moves(&config).hold, 80_000_000);
    }
}
