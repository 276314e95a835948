//! Words of headers, read and written at once, wherever they lie.
//!
//! Arrays of bytes would be copied byte by byte, or by a call, and what is read of them in
//! words soon after waits for all of these bytes.

/// Reads a word.
///
/// # Safety
///
/// `from` must point to a `T`, made of bytes alone.
#[inline(always)]
pub unsafe fn load<T>(from: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { from.cast::<T>().read_unaligned() }
}

/// Writes a word.
///
/// # Safety
///
/// `to` must point to as many writable bytes.
#[inline(always)]
pub unsafe fn store<T>(to: *mut u8, word: T) {
    // SAFETY: the caller's promise.
    unsafe { to.cast::<T>().write_unaligned(word) }
}
