//! Agents end and start in every way while connections of others are forwarded, and
//! new ones open and close.

use std::thread::sleep;
use std::time::Duration;

use super::common::{Churn, PATIENCE, Pop, dropped};

/// How an agent's life is interrupted.
#[derive(Clone, Copy, Debug)]
enum Restart {
    /// It is killed on the spot, and started a second later.
    Killed,
    /// It leaves, and is started again.
    Stopped,
    /// It is killed on the spot in the middle of its start, and started again.
    KilledInItsStart,
    /// It is started with other sizes of tables: new maps take the place of the old.
    OtherTables,
}

fn restart(pop: &mut Pop, host: u16, how: Restart) {
    match how {
        Restart::Killed => {
            pop.lab.kill(host).unwrap();
            // Sessions open and close that no agent hears of.
            sleep(Duration::from_secs(1));
        }
        Restart::Stopped => pop.lab.stop(host).unwrap(),
        Restart::KilledInItsStart => {
            for ms in [20, 120, 250, 400] {
                pop.lab.kill(host).unwrap();
                pop.lab.launch(host).unwrap();
                sleep(Duration::from_millis(ms));
            }
            pop.lab.kill(host).unwrap();
        }
        Restart::OtherTables => {
            pop.lab.stop(host).unwrap();
            let limits = "[limits]\nowners = 70000\nsessions = 30000";
            pop.lab.configure(host, limits).unwrap();
        }
    }
    pop.lab.start(host).unwrap();
}

#[test]
fn no_connection_breaks_and_no_packet_is_lost_however_agents_restart() {
    let mut pop = Pop::up("load");
    let clients = pop.load(30);
    let clients = pop.tour(clients);
    let before = dropped(&pop.lab);
    let mut churned = 0;
    for (host, how) in [
        (1, Restart::Killed),
        (2, Restart::Stopped),
        (3, Restart::OtherTables),
        (1, Restart::KilledInItsStart),
        (2, Restart::OtherTables),
        (3, Restart::Killed),
    ] {
        // Most of the long connections are of others than the hosts that see them.
        pop.lab.set_ecmp(&[host, host % 3 + 1]).unwrap();
        let churn = Churn::start(&pop.lab);
        restart(&mut pop, host, how);
        let live = clients.wait_rounds(2, PATIENCE).unwrap();
        assert_eq!(live, clients.total(), "after h{host}: {how:?}");
        let sum = churn.finish();
        assert!(sum > 50, "{sum} short connections");
        churned += sum;
        // What opened and closed meanwhile is known: nothing is left over.
        pop.lab
            .wait_settled(30, PATIENCE)
            .unwrap_or_else(|error| panic!("after h{host}: {how:?}: {error:#}"));
    }
    assert_eq!(dropped(&pop.lab), before, "of {churned} short connections");
    let clients = pop.tour(clients);
    pop.unbroken(clients);
    pop.lab.wait_settled(0, PATIENCE).unwrap();
    pop.down();
}
