//! The library `libzmq`, found when it is wanted: nothing of it takes part in the build,
//! and the benchmark does without it where it is not.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    mem,
    sync::{Arc, OnceLock},
};

use anyhow::{Context as _, Result, anyhow, ensure};

/// Kinds of sockets (`zmq.h`, as all numbers here; its contract is that none changes).
pub const DEALER: c_int = 5;
pub const ROUTER: c_int = 6;
/// Options of sockets.
pub const ROUTER_MANDATORY: c_int = 33;
const SNDHWM: c_int = 23;
const RCVHWM: c_int = 24;
const LAST_ENDPOINT: c_int = 32;
/// More parts of the message follow.
const SNDMORE: c_int = 2;

/// The name that all versions from 4.0 on go by.
const NAME: &CStr = c"libzmq.so.5";

/// What is used of it.
struct Library {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int),
    errno: unsafe extern "C" fn() -> c_int,
    strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    ctx_new: unsafe extern "C" fn() -> *mut c_void,
    ctx_term: unsafe extern "C" fn(*mut c_void) -> c_int,
    socket: unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
    setsockopt: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> c_int,
    getsockopt: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, *mut usize) -> c_int,
    bind: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    connect: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    send: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int) -> c_int,
    recv: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_int) -> c_int,
}

impl Library {
    /// The one that is loaded, or why there is none.
    fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| Self::load().map_err(|error| format!("{error:#}")));
        library.as_ref().map_err(|why| anyhow!("{why}"))
    }

    fn load() -> Result<Self> {
        // SAFETY: the name is a C string. The library's initializers are those of C++'s own
        // libraries.
        let handle = unsafe { libc::dlopen(NAME.as_ptr(), libc::RTLD_NOW) };
        ensure!(
            !handle.is_null(),
            "there is no {} (Debian's and Ubuntu's package libzmq5)",
            NAME.to_string_lossy()
        );
        // SAFETY: the handle is open and is never closed. Each field's type is the
        // declaration of its function in `zmq.h`, with pointers to what is opaque or bytes.
        unsafe {
            Ok(Self {
                version: function(handle, c"zmq_version")?,
                errno: function(handle, c"zmq_errno")?,
                strerror: function(handle, c"zmq_strerror")?,
                ctx_new: function(handle, c"zmq_ctx_new")?,
                ctx_term: function(handle, c"zmq_ctx_term")?,
                socket: function(handle, c"zmq_socket")?,
                close: function(handle, c"zmq_close")?,
                setsockopt: function(handle, c"zmq_setsockopt")?,
                getsockopt: function(handle, c"zmq_getsockopt")?,
                bind: function(handle, c"zmq_bind")?,
                connect: function(handle, c"zmq_connect")?,
                send: function(handle, c"zmq_send")?,
                recv: function(handle, c"zmq_recv")?,
            })
        }
    }

    /// What went wrong in the last call of this thread.
    fn error(&self, what: &str) -> anyhow::Error {
        // SAFETY: both have no preconditions, and the string is static.
        let why = unsafe { CStr::from_ptr((self.strerror)((self.errno)())) };
        anyhow!("ZeroMQ cannot {what}: {}", why.to_string_lossy())
    }

    /// What a call has returned, unless it failed.
    fn check(&self, result: c_int, what: &str) -> Result<usize> {
        usize::try_from(result).map_err(|_| self.error(what))
    }
}

/// # Safety
///
/// `T` is the type of a pointer to the function of this name.
unsafe fn function<T: Copy>(library: *mut c_void, name: &CStr) -> Result<T> {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    // SAFETY: the caller's handle is open, and the name is a C string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    ensure!(
        !address.is_null(),
        "libzmq has no {}",
        name.to_string_lossy()
    );
    // SAFETY: the caller says that this is a function of this type.
    Ok(unsafe { mem::transmute_copy(&address) })
}

/// The version of the library, if there is one.
pub fn version() -> Result<String> {
    let library = Library::get()?;
    let [mut major, mut minor, mut patch] = [0; 3];
    // SAFETY: three ints are written.
    unsafe { (library.version)(&raw mut major, &raw mut minor, &raw mut patch) };
    Ok(format!("{major}.{minor}.{patch}"))
}

/// What sockets of a process share: one thread for all that they send and receive.
pub struct Context {
    library: &'static Library,
    pointer: *mut c_void,
}

// SAFETY: contexts may be used by several threads at once (zmq_ctx_new(3)).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// With the library's own settings.
    pub fn new() -> Result<Arc<Self>> {
        let library = Library::get()?;
        // SAFETY: it has no preconditions.
        let pointer = unsafe { (library.ctx_new)() };
        ensure!(!pointer.is_null(), "{}", library.error("begin"));
        Ok(Arc::new(Self { library, pointer }))
    }

    /// A socket of a kind.
    pub fn socket(self: Arc<Self>, kind: c_int) -> Result<Socket> {
        // SAFETY: the context lives.
        let pointer = unsafe { (self.library.socket)(self.pointer, kind) };
        ensure!(
            !pointer.is_null(),
            "{}",
            self.library.error("open a socket")
        );
        Ok(Socket {
            library: self.library,
            pointer,
            _context: self,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the last socket has been closed, for each holds the context. This waits
        // until all that they have sent is out.
        unsafe { (self.library.ctx_term)(self.pointer) };
    }
}

/// A socket.
pub struct Socket {
    library: &'static Library,
    pointer: *mut c_void,
    /// Ends after the socket.
    _context: Arc<Context>,
}

// SAFETY: a socket may go from one thread to another with a full fence (zmq_socket(3)),
// which every way of giving a value to another thread has.
unsafe impl Send for Socket {}

impl Socket {
    /// Lets so many messages wait, to be sent and to be received. Before it is bound or
    /// connected.
    pub fn limit(&mut self, messages: usize) -> Result<()> {
        self.set(SNDHWM, messages as c_int)?;
        self.set(RCVHWM, messages as c_int)
    }

    /// Sets an option that is an int.
    pub fn set(&mut self, option: c_int, value: c_int) -> Result<()> {
        // SAFETY: the socket is open, and one int is read.
        let result = unsafe {
            (self.library.setsockopt)(
                self.pointer,
                option,
                (&raw const value).cast(),
                size_of::<c_int>(),
            )
        };
        self.library.check(result, "set an option").map(drop)
    }

    /// Listens, and says where, as [`Self::connect`] takes it.
    pub fn bind(&mut self, endpoint: &str) -> Result<String> {
        let name = CString::new(endpoint)?;
        // SAFETY: the socket is open, and the name is a C string.
        let result = unsafe { (self.library.bind)(self.pointer, name.as_ptr()) };
        self.library
            .check(result, &format!("listen on {endpoint}"))?;
        let mut bytes = [0_u8; 256];
        let mut len = bytes.len();
        // SAFETY: at most `len` bytes are written to as many.
        let result = unsafe {
            (self.library.getsockopt)(
                self.pointer,
                LAST_ENDPOINT,
                bytes.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        self.library.check(result, "say where it listens")?;
        let name = CStr::from_bytes_until_nul(&bytes).context("an address without an end")?;
        Ok(name.to_str()?.to_owned())
    }

    /// Connects, in the background.
    pub fn connect(&mut self, endpoint: &str) -> Result<()> {
        let name = CString::new(endpoint)?;
        // SAFETY: the socket is open, and the name is a C string.
        let result = unsafe { (self.library.connect)(self.pointer, name.as_ptr()) };
        self.library
            .check(result, &format!("connect to {endpoint}"))
            .map(drop)
    }

    /// Sends a part of a message, or all of it.
    pub fn send(&mut self, part: &[u8], more: bool) -> Result<()> {
        let flags = if more { SNDMORE } else { 0 };
        // SAFETY: the socket is open, and the bytes are copied within the call.
        let result =
            unsafe { (self.library.send)(self.pointer, part.as_ptr().cast(), part.len(), flags) };
        self.library.check(result, "send").map(drop)
    }

    /// Receives a part of a message, of so many bytes at most.
    pub fn receive(&mut self, part: &mut Vec<u8>, longest: usize) -> Result<()> {
        part.clear();
        part.reserve(longest);
        // SAFETY: the socket is open, and there is room for so many bytes.
        let result =
            unsafe { (self.library.recv)(self.pointer, part.as_mut_ptr().cast(), longest, 0) };
        let len = self.library.check(result, "receive")?;
        // A longer one is cut, and its own length is returned.
        ensure!(len <= longest, "a message of {len} bytes arrived");
        // SAFETY: so many bytes were written.
        unsafe { part.set_len(len) };
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: it is open, and not used after this.
        unsafe { (self.library.close)(self.pointer) };
    }
}
