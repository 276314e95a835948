//! The few `bpf(2)` calls that aya has no safe form of: links that are replaced
//! in place whatever their type, reading a hash map in batches, and running an
//! XDP program that is held by its file descriptor alone.

use std::{
    ffi::CString,
    io,
    mem::{MaybeUninit, size_of, zeroed},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::Pod;
use aya_obj::generated::{
    BPF_F_TEST_XDP_LIVE_FRAMES, bpf_attach_type, bpf_attr, bpf_attr__bindgen_ty_1, bpf_cmd,
    bpf_link_info,
    bpf_link_type::{BPF_LINK_TYPE_CGROUP, BPF_LINK_TYPE_TCX, BPF_LINK_TYPE_XDP},
    bpf_map_info, bpf_map_type, bpf_prog_info,
};

/// Entries that one system call reads from a hash map. No bucket of a hash map
/// may hold more, or the kernel refuses; buckets hold one or two.
const BATCH: usize = 4096;

/// What a link is attached to, as the kernel reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// An interface, by index. Zero: it has gone.
    Interface(u32),
    /// What leaves by an interface, by index. Zero: it has gone.
    Egress(u32),
    /// A cgroup, by id. Zero: it has gone.
    Cgroup(u64),
    /// Something Homing never attaches to.
    Other,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    pub target: Target,
}

/// Attaches `program` to the interface `ifindex`; `flags` are `XDP_FLAGS_*`.
pub(super) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    link_create(program, ifindex, bpf_attach_type::BPF_XDP, flags)
}

/// Attaches `program` to what leaves by the interface `ifindex`, after programs that
/// are there already.
pub(super) fn link_egress(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    link_create(program, ifindex, bpf_attach_type::BPF_TCX_EGRESS, 0)
}

/// The ids of the links through which programs are attached to what leaves by an
/// interface of this network namespace.
pub(super) fn egress_links(ifindex: u32) -> io::Result<Vec<u32>> {
    // The kernel allows 64.
    let (mut programs, mut links) = ([0u32; 64], [0u32; 64]);
    let mut attr = empty();
    attr.query.__bindgen_anon_1.target_ifindex = ifindex;
    attr.query.attach_type = bpf_attach_type::BPF_TCX_EGRESS as u32;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = links.len() as u32;
    match bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) {
        // SAFETY: the kernel wrote back how many there are.
        Ok(_) => Ok(links[..unsafe { attr.query.__bindgen_anon_2.count } as usize].to_vec()),
        // Nothing was ever attached to it.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Attaches `program` to sockets of a cgroup and of those below it, beside other
/// programs that may be there.
pub(super) fn link_sockops(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let cgroup = cgroup.as_raw_fd() as u32;
    link_create(program, cgroup, bpf_attach_type::BPF_CGROUP_SOCK_OPS, 0)
}

/// Attaches `program` to what the sockets of a cgroup, and of those below it, send,
/// beside other programs that may be there.
pub(super) fn link_cgroup_egress(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let cgroup = cgroup.as_raw_fd() as u32;
    link_create(program, cgroup, bpf_attach_type::BPF_CGROUP_INET_EGRESS, 0)
}

fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = target;
    attr.link_create.attach_type = attach_type as u32;
    attr.link_create.flags = flags;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Puts `program` in the place of the one a link runs: no packet and no event
/// goes by in between.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches what a link attached; the link itself stays, without effect.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// What the kernel says of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: `bpf_link_info` is made of integers, for which zero is a value.
    let mut info: bpf_link_info = unsafe { zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let target = if info.type_ == BPF_LINK_TYPE_XDP as u32 {
        // SAFETY: the link's type says which member of the union is filled.
        Target::Interface(unsafe { info.__bindgen_anon_1.xdp.ifindex })
    } else if info.type_ == BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: as above.
        let tcx = unsafe { info.__bindgen_anon_1.tcx };
        if tcx.attach_type == bpf_attach_type::BPF_TCX_EGRESS as u32 {
            Target::Egress(tcx.ifindex)
        } else {
            Target::Other
        }
    } else if info.type_ == BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: as above.
        Target::Cgroup(unsafe { info.__bindgen_anon_1.cgroup.cgroup_id })
    } else {
        Target::Other
    };
    Ok(LinkInfo {
        id: info.id,
        program_id: info.prog_id,
        target,
    })
}

/// Pins a program, map or link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned program, map or link.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Reads all entries of a hash map, bucket by bucket. An entry that is there
/// from the first call to the last is seen exactly once; one that comes or goes
/// meanwhile is seen once or not at all.
pub(super) fn scan<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, V),
) -> io::Result<()> {
    scan_bytes(map, size_of::<K>(), size_of::<V>(), |key, value| {
        // SAFETY: the slices are as long as the types, and any bytes are a value of
        // a `Pod`.
        let (key, value) = unsafe {
            (
                key.as_ptr().cast::<K>().read_unaligned(),
                value.as_ptr().cast::<V>().read_unaligned(),
            )
        };
        each(key, value);
    })
}

/// The same for types that only the map knows. The sizes must be the map's.
pub(super) fn scan_bytes(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut keys = vec![0u8; BATCH * key_size];
    let mut values = vec![0u8; BATCH * value_size];
    // A hash map's cursor is a bucket number, four bytes long.
    let mut cursor = 0u32;
    let mut first = true;
    loop {
        let mut next = 0u32;
        let mut attr = empty();
        attr.batch.map_fd = map.as_raw_fd() as u32;
        attr.batch.in_batch = if first { 0 } else { (&raw const cursor) as u64 };
        attr.batch.out_batch = (&raw mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = BATCH as u32;
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel wrote back how many entries it filled.
        let count = unsafe { attr.batch.count } as usize;
        for index in 0..count.min(BATCH) {
            each(
                &keys[index * key_size..][..key_size],
                &values[index * value_size..][..value_size],
            );
        }
        if last {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}

/// Reads an entry into `value`, which must be as long as the map's values, as `key`
/// must be as its keys. Returns whether there is one.
pub(super) fn get_bytes(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes an entry; `flags` are `BPF_ANY`, `BPF_NOEXIST` and so on.
pub(super) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = ptr::from_ref(value) as u64;
    attr.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Writes an entry; `key` and `value` must be as long as the map's.
pub(super) fn update_bytes(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    flags: u64,
) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    attr.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes an entry, if there is one; `key` must be as long as the map's.
pub(super) fn remove(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Makes a map of one value, so many bytes long.
pub(super) fn create_cell(name: &str, value_size: usize) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: of this union, creating a map reads this member; it is all zeros.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = value_size as u32;
    create.max_entries = 1;
    name_map(create, name);
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Makes an array map of values of a type that `btf` describes, so many bytes long.
/// `flags` are `BPF_F_*`.
pub(super) fn create_array(
    name: &str,
    (value_size, value_type): (usize, u32),
    entries: u32,
    flags: u32,
    (btf, key_type): (BorrowedFd<'_>, u32),
) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: of this union, creating a map reads this member; it is all zeros.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = value_size as u32;
    create.max_entries = entries;
    create.map_flags = flags;
    create.btf_fd = btf.as_raw_fd() as u32;
    create.btf_key_type_id = key_type;
    create.btf_value_type_id = value_type;
    name_map(create, name);
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Tells the kernel of types.
pub(super) fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_7.btf = bytes.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = bytes.len() as u32;
    bpf_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr)
}

/// Opens the map with an id. Needs CAP_SYS_ADMIN, which the agent does not have.
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    bpf_fd(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attr)
}

/// A program's id, and those of the maps that it uses.
pub(super) fn id_and_maps_of(program: BorrowedFd<'_>) -> io::Result<(u32, Vec<u32>)> {
    // SAFETY: `bpf_prog_info` is made of integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let examine = |info: &mut bpf_prog_info| {
        let mut attr = empty();
        attr.info.bpf_fd = program.as_raw_fd() as u32;
        attr.info.info_len = size_of::<bpf_prog_info>() as u32;
        attr.info.info = ptr::from_mut(info) as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)
    };
    // The first time, how many maps there are.
    examine(&mut info)?;
    let (id, mut maps) = (info.id, vec![0; info.nr_map_ids as usize]);
    // SAFETY: as above.
    info = unsafe { zeroed() };
    info.nr_map_ids = maps.len() as u32;
    info.map_ids = maps.as_mut_ptr() as u64;
    examine(&mut info)?;
    Ok((id, maps))
}

/// A map's id, and how many entries it has at most.
pub(super) fn id_and_entries_of(map: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // SAFETY: `bpf_map_info` is made of integers, for which zero is a value.
    let mut info: bpf_map_info = unsafe { zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = map.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.id, info.max_entries))
}

/// Names a map that is to be made: fifteen bytes at most.
fn name_map(create: &mut bpf_attr__bindgen_ty_1, name: &str) {
    // The last byte stays zero.
    for (to, from) in create.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
}

/// Returns when every program run that had begun before the call is over. False: the
/// kernel does not offer that.
pub(super) fn grace_period() -> bool {
    // `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` (kernel/sched/membarrier.c),
    // which also waits for whatever runs with bottom halves disabled: XDP.
    // SAFETY: the call takes no pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_membarrier,
            libc::MEMBARRIER_CMD_GLOBAL,
            0 as libc::c_uint,
            0 as libc::c_int,
        )
    };
    result == 0
}

/// Removes an entry of a hash map and returns what it was.
pub(super) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) {
        // SAFETY: the kernel has filled it.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The part of `struct xdp_md` that a run is given.
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Context {
    fn new(ifindex: u32, len: usize) -> Self {
        Self {
            data: 0,
            data_end: len as u32,
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        }
    }
}

/// Runs an XDP program on a frame as if it had come in by an interface of this
/// thread's network namespace, and does with the frame what the program says.
pub(super) fn run_live(program: BorrowedFd<'_>, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let context = Context::new(ifindex, frame.len());
    let mut attr = empty();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.ctx_in = (&raw const context) as u64;
    attr.test.ctx_size_in = size_of::<Context>() as u32;
    attr.test.repeat = 1;
    attr.test.batch_size = 1;
    attr.test.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
}

/// Runs an XDP program on data that it changes in place, in the network namespace
/// of this thread, where the interface is. Nothing becomes of the data but that.
pub(super) fn run_on<T: Pod>(
    program: BorrowedFd<'_>,
    ifindex: u32,
    data: &mut [T],
) -> io::Result<()> {
    let (len, at) = (size_of_val(data), data.as_mut_ptr());
    // The kernel copies the data in before it runs the program, and out after, and
    // any bytes are a value of a `Pod`.
    run_between(program, ifindex, (at.cast(), len), (at.cast(), len)).map(drop)
}

/// Runs an XDP program on a frame, in the network namespace of this thread, where the
/// interface is; writes the frame as it went to `out`, and returns its length. Nothing
/// becomes of it but that.
pub(super) fn run(
    program: BorrowedFd<'_>,
    ifindex: u32,
    frame: &[u8],
    out: &mut [u8],
) -> io::Result<usize> {
    let out = (out.as_mut_ptr(), out.len());
    run_between(program, ifindex, (frame.as_ptr(), frame.len()), out)
}

fn run_between(
    program: BorrowedFd<'_>,
    ifindex: u32,
    (from, from_len): (*const u8, usize),
    (to, to_len): (*mut u8, usize),
) -> io::Result<usize> {
    let context = Context::new(ifindex, from_len);
    let mut attr = empty();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = from as u64;
    attr.test.data_size_in = from_len as u32;
    attr.test.data_out = to as u64;
    attr.test.data_size_out = to_len as u32;
    attr.test.ctx_in = (&raw const context) as u64;
    attr.test.ctx_size_in = size_of::<Context>() as u32;
    attr.test.repeat = 1;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel wrote back how many bytes there were.
    Ok((unsafe { attr.test.data_size_out } as usize).min(to_len))
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn empty() -> bpf_attr {
    // SAFETY: `bpf_attr` is made of integers, for which zero is a value.
    unsafe { zeroed() }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returns a new file descriptor that nobody else owns.
    // The kernel sets its close-on-exec flag.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as large as said, and every pointer put into it by this
    // module is valid for the length of the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
