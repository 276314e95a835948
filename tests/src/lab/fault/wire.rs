//! The program that makes faults: it reads the TAP devices, asks [`super::shim`] and
//! writes to the router's ports, past the filters that brought the frames here.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::{
            fs::OpenOptionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::raw::{Raw, index_of};

use super::{
    super::{
        net,
        plan::{Node, Plan},
        state::State,
    },
    READY, ports,
    shim::Shim,
    socket, tap,
};

/// Frames that are read from one device before the others have their turn.
const BURST: usize = 64;
/// The largest frame: jumbo frames and VLAN tags included.
const FRAME_MAX: usize = 10_000;
/// How long one who gives orders may take to say them.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes the faults of a lab until the process is ended. To be run in the router's
/// namespace.
pub fn run(lab: &str) -> Result<()> {
    let state = State::read(lab)?.with_context(|| format!("there is no lab \"{lab}\""))?;
    let plan = state.plan;
    let taps = ports(&plan)
        .into_iter()
        .map(|node| Tap::open(node).with_context(|| format!("cannot make a TAP device for {node}")))
        .collect::<Result<Vec<_>>>()?;
    let out = Raw::sender().context("cannot open a packet socket")?;
    let path = socket(lab);
    // Left behind by a process that was killed.
    fs::remove_file(&path).ok();
    let orders = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    println!("{READY}");
    serve(&plan, &taps, &out, &orders).context("cannot wait for frames")
}

fn serve(plan: &Plan, taps: &[Tap], out: &Raw, orders: &UnixListener) -> io::Result<()> {
    let start = Instant::now();
    let mut shim = Shim::new(plan);
    let mut buffer = vec![0; FRAME_MAX];
    let mut fds: Vec<libc::pollfd> = taps
        .iter()
        .map(|tap| tap.file.as_fd())
        .chain([orders.as_fd()])
        .map(|fd: BorrowedFd<'_>| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    loop {
        let wait = shim
            .deadline()
            .map(|due| due.saturating_sub(start.elapsed()));
        poll(&mut fds, wait)?;
        for (tap, fd) in taps.iter().zip(&fds) {
            if fd.revents != 0 {
                for _ in 0..BURST {
                    match (&tap.file).read(&mut buffer) {
                        Ok(len) => shim.take(start.elapsed(), tap.to, &buffer[..len]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        if fds.last().is_some_and(|fd| fd.revents != 0) {
            let (stream, _) = orders.accept()?;
            if let Err(error) = take_order(stream, &mut shim) {
                eprintln!("an order was not understood: {error:#}");
            }
        }
        while let Some((to, frame)) = shim.due(start.elapsed()) {
            let port = taps.iter().find(|tap| tap.to == to).map(|tap| tap.port);
            if let Some(port) = port
                && let Err(error) = out.send(port, &frame)
            {
                // As on a wire: a frame that cannot be sent is lost.
                eprintln!("cannot send to {to}: {error}");
            }
        }
    }
}

fn take_order(stream: UnixStream, shim: &mut Shim) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    shim.set(serde_json::from_str(&line)?);
    writeln!(&stream, "{}", serde_json::to_string(&shim.tally())?)?;
    Ok(())
}

/// The device that frames towards a machine are redirected to.
struct Tap {
    to: Node,
    /// The index of the router's port towards the machine.
    port: u32,
    file: File,
}

impl Tap {
    fn open(to: Node) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("cannot open /dev/net/tun")?;
        let name = tap(to);
        let mut request = InterfaceRequest {
            name: [0; 16],
            flags: (libc::IFF_TAP | libc::IFF_NO_PI) as u16,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the request is of the kernel's layout and size, and outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &request) };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("TUNSETIFF");
        }
        // The kernel must send nothing of its own into it.
        fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").ok();
        let mut command = Command::new("ip");
        command.args([
            "link",
            "set",
            &name,
            "mtu",
            "9000",
            "txqueuelen",
            "10000",
            "up",
        ]);
        net::run(&mut command, None)?;
        let port = index_of(&to.to_string())?;
        Ok(Self { to, port, file })
    }
}

/// `struct ifreq` as far as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Waits for any of `fds`, no longer than `wait`.
fn poll(fds: &mut [libc::pollfd], wait: Option<Duration>) -> io::Result<()> {
    let wait = wait.map(|wait| libc::timespec {
        tv_sec: wait.as_secs() as libc::time_t,
        tv_nsec: wait.subsec_nanos().into(),
    });
    let timeout = wait.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` is as long as told, and what `timeout` points to outlives the call.
    let result = unsafe {
        libc::ppoll(
            fds.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            timeout,
            std::ptr::null(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        // Nothing is ready.
        for fd in fds {
            fd.revents = 0;
        }
    }
    Ok(())
}
