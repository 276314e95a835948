use super::common::{Site, packages};
#[test]
fn explore() {
    let Some([first, _]) = packages() else { return };
    let t = std::time::Instant::now();
    let site = Site::installed("sdx", first);
    println!("installed {:?}", t.elapsed());
    site.start();
    println!("started {:?}", t.elapsed());
    for c in [
        "systemctl show homing | egrep 'ActiveState|SubState|MainPID|StatusText|Result|NRestarts'",
        "cat /proc/$(systemctl show homing -p MainPID --value)/status | egrep 'Cap|Sec|NoNew|Uid'",
        "stat -c '%n %U:%G %a' /run/homing /run/homing/*",
        "journalctl -u homing --no-pager | cat",
        "systemd-analyze verify homing.service; echo verify $?",
        "systemd-analyze security --no-pager homing.service | cat",
        "systemd-analyze security --no-pager --offline=yes --threshold=30 homing.service | tail -3",
        "systemctl list-units --no-pager| cat; systemctl --failed; cat /dev/console; ps axf; cat /proc/self/mounts",
        "find /sys/fs/bpf | head -50; cat /proc/1/cgroup; systemctl reload homing; echo $?; systemctl stop homing; journalctl -u homing --no-pager | tail -5",
    ] {
        let o = site.root.output("sh", &["-c", c]).unwrap();
        println!("$ {c}\n{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    }
    println!("{:?} {}", site.program(), site.seen());
    site.down();
}
