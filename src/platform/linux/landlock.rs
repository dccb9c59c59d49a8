//! Whether the kernel has Landlock: its sandboxes forbid to trace what is outside of them.
#![expect(unsafe_code, reason = "a system call without a wrapper")]

use nix::libc;

/// Says whether the kernel has Landlock, and it is switched on. Whether this process is in a sandbox,
/// the kernel does not say.
pub(super) fn has_landlock() -> bool {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of `<linux/landlock.h>`.
    const VERSION: libc::c_uint = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for the version, the call takes no rules and makes nothing.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    version > 0
}
