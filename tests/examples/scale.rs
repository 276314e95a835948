use homing_tests::scale::*;
use std::time::Instant;
fn main() {
    let a: Vec<u64> = std::env::args()
        .skip(1)
        .map(|a| a.parse().unwrap())
        .collect();
    let size = Size {
        hosts: a[0] as u16,
        domains: a[1] as u16,
        opens_per_s: a[2],
    };
    let t = Instant::now();
    let mut pop = Pop::new(size, 1);
    let show = |pop: &mut Pop, what: &str| {
        let m = pop.measure();
        println!(
            "{what}: t={:.1}s cpu {:.1}s; differing {} not alive {}; delays p50 {} p99 {} max {} n {}; bytes/ann {:.2} other {:.2} gossip dg {}; rate mean {:.0} max {}",
            pop.now as f64 / 1e6,
            t.elapsed().as_secs_f64(),
            pop.differing(),
            pop.not_alive(),
            m.delays.quantile(0.5),
            m.delays.quantile(0.99),
            m.delays.max(),
            m.delays.total(),
            m.gossip_bytes as f64 / m.learned.max(1) as f64,
            m.other_bytes as f64 / m.learned.max(1) as f64,
            m.gossip_datagrams,
            m.rates.mean(),
            m.rates.max()
        );
        println!(
            "   repairs {} stood in {} passed {} covered {} dup {} unknown {} dropped {} waits {} syncs {}",
            pop.sum(|c| c.repairs_asked),
            pop.sum(|c| c.relay_stood_in),
            pop.sum(|c| c.relay_passed_on),
            pop.sum(|c| c.relay_covered),
            pop.sum(|c| c.duplicates),
            pop.sum(|c| c.relay_unknown),
            pop.sum(|c| c.relay_dropped),
            pop.sum(|c| c.send_waits),
            pop.sum(|c| c.syncs_done)
        );
    };
    for h in 0..size.hosts {
        pop.start(h);
        pop.run(500_000 / size.hosts as u64);
    }
    show(&mut pop, "started");
    for _ in 0..a[3] {
        pop.run(1_000_000);
        show(&mut pop, "joining");
    }
    pop.set_churn(true);
    pop.run(500_000);
    show(&mut pop, "churn begins");
    pop.run(500_000);
    show(&mut pop, "steady");
    if a[4] == 0 { return; }
    pop.kill(3);
    pop.run(1_000_000);
    show(&mut pop, "killed");
    pop.cut(1);
    pop.run(a[4] * 1000);
    show(&mut pop, "cut");
    pop.heal();
    for _ in 0..4 {
        pop.run(500_000);
        show(&mut pop, "healed");
    }
    pop.set_churn(false);
    pop.run(2_000_000);
    show(&mut pop, "quiet");
}
