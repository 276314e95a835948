//! Message sockets of real agents: found by name, and again when agents have ended.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use homing_tests::lab::{Node, wait_until};

use super::common::{PATIENCE, Pop};

const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../client/examples/messages.py"
);

/// The example's service in capitals. It ends with this.
struct Service(Child);

impl Service {
    fn offer(pop: &Pop, host: u16) -> Self {
        let mut command = Command::new("python3");
        command
            .arg(EXAMPLE)
            .arg(pop.lab.sockets(host).mux)
            .args(["offer", "upper"])
            .stdout(Stdio::piped());
        let mut child = pop.lab.spawn(Node::Host(host), &mut command).unwrap();
        let mut line = String::new();
        let output = BufReader::new(child.stdout.take().unwrap());
        { output }.read_line(&mut line).unwrap();
        assert_eq!(line, "offering upper\n");
        Self(child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks for a word in capitals, wherever that is offered.
fn ask(pop: &Pop, host: u16) -> anyhow::Result<String> {
    let socket = pop.lab.sockets(host).mux;
    let args = [EXAMPLE, &socket.to_string_lossy(), "ask", "upper", "word"];
    pop.lab.exec(Node::Host(host), "python3", &args)
}

#[test]
fn a_service_is_found_by_its_name_across_kills_of_either_agent() {
    let mut pop = Pop::up("messages");
    let mut service = Service::offer(&pop, 2);
    for host in [1, 2, 3] {
        assert_eq!(
            ask(&pop, host).unwrap().trim(),
            "word: WORD",
            "from h{host}"
        );
    }
    let mux = pop.lab.homing_json(2, &["mux", "status"]).unwrap();
    assert_eq!(mux["sockets"][0]["offers"], "upper");
    assert_eq!(
        (&mux["sum"]["services"], &mux["encryption"]),
        (&1.into(), &true.into())
    );
    let table = pop
        .lab
        .exec(Node::Host(2), "homing", &["mux", "status"])
        .unwrap();
    assert!(table.contains("offers upper"), "{table}");
    // The client's agent.
    pop.lab.kill(1).unwrap();
    pop.lab.start(1).unwrap();
    assert_eq!(ask(&pop, 1).unwrap().trim(), "word: WORD");
    // The service's: its application sees the end of its message socket, and ends.
    pop.lab.kill(2).unwrap();
    let ended = wait_until(PATIENCE, || Ok(service.0.try_wait()?.is_some()));
    assert!(
        ended.unwrap(),
        "the service does not see that its agent has gone"
    );
    pop.lab.start(2).unwrap();
    let _service = Service::offer(&pop, 2);
    for host in [1, 3] {
        let found = wait_until(PATIENCE, || Ok(ask(&pop, host).is_ok()));
        assert!(found.unwrap(), "h{host} does not find the service again");
    }
    pop.down();
}
