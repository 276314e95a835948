//! x
use homing_common::{host::Encapsulation, outcome::Outcome};
use homing_tests::{packet::{Tcp, flags}, program::{self, Action, Program, in_namespace}};

#[test]
fn smoke() {
    in_namespace(|| {
        let mut p = Program::load(program::settings(program::tunnel_v4(), Encapsulation::Ipip)).unwrap_or_else(|e| panic!("{e:?}"));
        p.add_service("203.0.113.10:443").unwrap();
        let run = p.run(&Tcp::new("198.51.100.7:40000", "203.0.113.10:443", flags::SYN).frame()).unwrap();
        assert_eq!((run.action, run.outcome), (Action::Pass, Outcome::LocalSyn));
    });
}
