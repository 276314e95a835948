//! Hosts whose clocks of the day differ, and jump while everything runs.

use std::time::{SystemTime, UNIX_EPOCH};

use homing_tests::lab::{Lab, unique, wait_until};

use super::common::{PATIENCE, Pop};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

impl Pop {
    /// Sets a host's clock, and waits until its agent has seen it, by when it says that
    /// it has just heard another.
    fn jump(&self, host: u16, of: u16, seconds: i64) {
        self.lab.set_clock(host, seconds).unwrap();
        self.wait_clock(host, of, seconds);
    }

    fn wait_clock(&self, host: u16, of: u16, seconds: i64) {
        let mut off = None;
        let reached = wait_until(PATIENCE, || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let heard_ms = self.seen(host, of, "kernel_heard_unix_ms").as_u64();
            off = heard_ms.map(|ms| (ms / 1_000) as i64 - now as i64);
            Ok(off.is_some_and(|off| (off - seconds).abs() < 60))
        });
        assert!(
            reached.unwrap(),
            "h{host}'s clock is {off:?} s off, not {seconds}"
        );
    }
}

#[test]
fn clocks_that_jump_break_nothing() {
    let lab = Lab::builder().name(&unique("clocks")).hosts(3).racks(2);
    let mut lab = lab.no_homing().up().unwrap();
    for host in 1..=3 {
        lab.set_clock(host, 0).unwrap();
    }
    lab.start_all().unwrap();
    let mut pop = Pop::from(lab);
    pop.lab.set_ecmp(&[1, 2]).unwrap();
    let mut clients = pop.load(30);
    let mut open = 30;
    let mut all = Vec::new();
    for (first, second) in [
        (HOUR, -HOUR),
        (-HOUR, 3650 * DAY),
        (-DAY, DAY),
        (0, -30 * DAY),
    ] {
        pop.jump(1, 2, first);
        pop.jump(2, 1, second);
        clients = pop.tour(clients);
        pop.lab.set_ecmp(&[1, 2]).unwrap();
        open += 10;
        all.push(pop.load_more(10, open));
    }
    assert!(pop.counter(1, "clock_differs") > 0, "h1 noticed nothing");
    for host in 1..=3 {
        for name in ["downs", "kernels_judged_dead", "voided_hosts"] {
            assert_eq!(pop.counter(host, name), 0, "{name} of h{host}");
        }
    }
    // A machine that forgets all, and whose clock is back in the past, gets its id.
    let before = pop.seen(1, 3, "incarnation").as_u64();
    pop.reboot(3, &[1, 2]);
    pop.lab.set_clock(3, -2 * DAY).unwrap();
    pop.lab.start(3).unwrap();
    pop.wait_clock(3, 1, -2 * DAY);
    assert!(pop.seen(1, 3, "incarnation").as_u64() > before);
    pop.lab.wait_settled(open, PATIENCE).unwrap();
    clients = pop.tour(clients);
    for more in all {
        let more = pop.tour(more);
        pop.unbroken(more);
    }
    pop.unbroken(clients);
    pop.down();
}
