use aya::maps::{HashMap, Map, MapData};
use std::os::fd::{AsFd, AsRawFd};
fn cpu() -> f64 { let mut t: libc::timespec = unsafe { std::mem::zeroed() }; unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) }; t.tv_sec as f64 * 1e9 + t.tv_nsec as f64 }
#[repr(C)] struct Batch { in_batch: u64, out_batch: u64, keys: u64, values: u64, count: u32, map_fd: u32, elem_flags: u64, flags: u64 }
fn main() {
    let mut ebpf = aya::EbpfLoader::new().load(&std::fs::read(std::env::args().nth(1).unwrap()).unwrap()).unwrap();
    let map = ebpf.take_map("OWNERS").unwrap();
    let Map::HashMap(data) = map else { panic!() };
    let fd = data.fd().as_fd().as_raw_fd();
    let mut map: HashMap<MapData, homing_common::session::SessionId, homing_common::maps::Owner> = HashMap::try_from(Map::HashMap(data)).unwrap();
    const N: u64 = 400_000;
    let key = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7);
    for _ in 0..3 {
        let t = cpu();
        for n in 0..N { map.insert(homing_common::session::SessionId(key(n)), homing_common::maps::Owner { host: 5, zero: [0; 3] }, 1).unwrap(); }
        let a = cpu();
        for n in 0..N { map.remove(&homing_common::session::SessionId(key(n))).unwrap(); }
        let b = cpu();
        println!("single: insert {:.0} ns remove {:.0} ns", (a - t) / N as f64, (b - a) / N as f64);
        let keys: Vec<u64> = (0..N).map(key).collect();
        let values = vec![homing_common::maps::Owner { host: 5, zero: [0; 3] }; N as usize];
        let t = cpu();
        for chunk in keys.chunks(128) {
            let mut attr = Batch { in_batch: 0, out_batch: 0, keys: chunk.as_ptr() as u64, values: values.as_ptr() as u64, count: chunk.len() as u32, map_fd: fd as u32, elem_flags: 0, flags: 0 };
            let r = unsafe { libc::syscall(libc::SYS_bpf, 26, &raw mut attr, size_of::<Batch>()) };
            assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
        }
        let a = cpu();
        for chunk in keys.chunks(128) {
            let mut attr = Batch { in_batch: 0, out_batch: 0, keys: chunk.as_ptr() as u64, values: 0, count: chunk.len() as u32, map_fd: fd as u32, elem_flags: 0, flags: 0 };
            let r = unsafe { libc::syscall(libc::SYS_bpf, 27, &raw mut attr, size_of::<Batch>()) };
            assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
        }
        let b = cpu();
        println!("batch: insert {:.0} ns remove {:.0} ns", (a - t) / N as f64, (b - a) / N as f64);
    }
}
