//! Sets the limits of this process: how many files and sockets it may open, and that it leaves no
//! core dump.
//!
//! A core dump would hold every secret and every body of the moment.

use std::io;

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Most connections of clients, even if the system allows more: each may hold its buffers.
const MOST: usize = 16_384;
/// Most descriptors that are kept for the admin listener, the store, the ledger and files.
const RESERVE: usize = 256;

/// The descriptors of this process, and how many each kind of connection gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The number of descriptors that the process may open.
    pub limit: usize,
    /// The limit before it was raised.
    pub before: usize,
    /// Connections of clients. As many requests may be in flight, each with a connection to an
    /// upstream.
    pub clients: usize,
    /// Idle connections to upstreams.
    pub idle: usize,
    /// Connections of operators, probes and Prometheus.
    pub admin: usize,
}

impl Descriptors {
    /// Raises the soft limit to the hard one, and returns the descriptors that the process then
    /// has.
    pub fn raise() -> Self {
        let before = Self::of_process();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum {
            // If the system refuses, the limit of before is the one in use.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        }
        Self { before: before.limit, ..Self::of_process() }
    }

    pub fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        Self::of(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX))
    }

    fn of(limit: usize) -> Self {
        let reserve = RESERVE.min(limit / 4);
        let clients = ((limit - reserve) / 2).clamp(1, MOST);
        Self { limit, before: limit, clients, idle: clients / 4, admin: (reserve / 4).max(1) }
    }
}

/// Whether this process or this machine has no descriptor left.
pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Makes the system write no core of this process, and hides its memory from other processes of the
/// same user.
pub fn forbid_cores() {
    // Either call suffices. If the system refuses both, no other call can help.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn process_without_cores_is_not_dumpable() {
        use rustix::process::{dumpable_behavior, getrlimit};
        forbid_cores();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
    }

    #[test]
    fn descriptors_are_shared_out() {
        for (limit, clients, admin) in
            [(64, 24, 4), (256, 96, 16), (1_024, 384, 64), (1 << 20, MOST, 64), (1, 1, 1)]
        {
            let shared = Descriptors::of(limit);
            assert_eq!((shared.clients, shared.admin), (clients, admin), "{limit}");
            let all = 2 * clients + shared.idle + admin;
            assert!(limit == 1 || all < limit, "something is left for the store: {all}");
        }
    }
}
