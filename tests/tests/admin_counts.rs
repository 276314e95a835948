//! The driver's counters of a real interface.

use homing_agent::admin::counts::xdp_errors;
use homing_tests::sandbox::{self, ip};

#[test]
fn a_veth_counts_what_xdp_could_not_send() {
    sandbox::run(|_| {
        ip(
            "link add hm-a numrxqueues 3 numtxqueues 3 type veth peer name hm-b numrxqueues 3 numtxqueues 3",
        );
        let errors = xdp_errors("hm-a").expect("counters");
        let names: Vec<_> = errors.keys().map(String::as_str).collect();
        assert_eq!(names, ["rx_xdp_tx_errors", "tx_xdp_xmit_errors"]);
        assert!(errors.values().all(|count| *count == 0), "{errors:?}");
    });
}
