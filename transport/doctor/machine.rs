//! What a machine gives a process: sockets and their buffers, files, a directory. Each check is a
//! function of what was seen; the functions beside them look.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use protocol::Finding;

use crate::settings;

/// Where Linux keeps the largest buffers that a process may ask for.
const LARGEST: [&str; 2] = ["/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max"];

/// The buffers of a UDP socket that asked as every endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes that it asked for, and may receive and send into.
    pub wanted: usize,
    /// Bytes that it got, receiving and sending.
    pub got: [usize; 2],
}

/// # Errors
/// When there is no socket to be had.
pub fn look_at_buffers() -> io::Result<Buffers> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = settings::bound(any)?;
    // Linux counts what it spends on keeping books, and says twice what it was asked for.
    let halved = |bytes: usize| if cfg!(target_os = "linux") { bytes / 2 } else { bytes };
    let got = [socket.recv_buffer_size()?, socket.send_buffer_size()?].map(halved);
    Ok(Buffers { wanted: settings::SOCKET_BUFFER_BYTES, got })
}

/// Whether bursts of activations fit the socket.
pub fn judge_buffers(seen: &io::Result<Buffers>) -> Finding {
    let check = "udp buffers";
    let Buffers { wanted, got: [receive, send] } = match seen {
        Ok(seen) => *seen,
        Err(cause) => {
            let found = format!("no UDP socket can be opened: {cause}");
            return Finding::fail(check, found, "allow this process to open sockets");
        }
    };
    let kib = |bytes: usize| bytes >> 10;
    let found = format!(
        "{} KiB to receive and {} KiB to send, of {} KiB wanted",
        kib(receive),
        kib(send),
        kib(wanted)
    );
    if receive.min(send) >= wanted {
        return Finding::ok(check, found);
    }
    let names = LARGEST.map(|path| path.trim_start_matches("/proc/sys/").replace('/', "."));
    let settings: Vec<_> = names.iter().map(|name| format!("{name}={wanted}")).collect();
    Finding::warn(
        check,
        found + ": packets of a burst get lost and are sent again",
        format!("run: sysctl -w {}", settings.join(" ")),
    )
}

/// How many files this process may have open, and how many it may allow itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// Now.
    pub soft: u64,
    /// At most.
    pub hard: u64,
}

/// What the system says.
pub fn look_at_open_files() -> Option<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(OpenFiles { soft, hard })
}

/// Whether `needed` files may be open at once.
pub fn judge_open_files(seen: Option<OpenFiles>, needed: u64) -> Finding {
    let check = "open files";
    let Some(OpenFiles { soft, hard }) = seen else {
        return Finding::ok(check, "the system sets no limit that can be read");
    };
    let found = format!("{soft} files may be open, {needed} are enough");
    match soft >= needed {
        true => Finding::ok(check, found),
        false if hard >= needed => Finding::warn(
            check,
            format!("{soft} files may be open, and {needed} may be needed"),
            format!("run: ulimit -n {needed} (systemd: LimitNOFILE={needed})"),
        ),
        false => Finding::warn(
            check,
            format!("{soft} files may be open, {hard} at most, and {needed} may be needed"),
            format!("raise the limit as root (systemd: LimitNOFILE={needed})"),
        ),
    }
}

/// A directory to keep things in.
#[derive(Debug)]
pub struct Folder {
    /// As it was configured.
    pub path: PathBuf,
    /// Whether a file could be written there.
    pub written: Result<(), String>,
    /// Bytes that are free there, where the system says so.
    pub free_bytes: Option<u64>,
}

/// Writes a file into `path`, which is made where there is none, and removes it.
pub fn look_at_folder(path: &Path) -> Folder {
    let try_out = || {
        fs::create_dir_all(path)?;
        let probe = path.join(format!("doctor-{}", std::process::id()));
        let written = fs::write(&probe, b"doctor was here");
        let removed = fs::remove_file(&probe);
        written.and(removed)
    };
    let written = try_out().map_err(|cause: io::Error| cause.to_string());
    let free = |stat: nix::sys::statvfs::Statvfs| {
        stat.blocks_available().saturating_mul(stat.fragment_size())
    };
    let free_bytes = nix::sys::statvfs::statvfs(path).ok().map(free);
    Folder { path: path.to_owned(), written, free_bytes }
}

/// Whether the directory takes what will be kept there, about `needed` bytes.
pub fn judge_folder(seen: &Folder, needed: u64) -> Finding {
    let check = "data directory";
    let Folder { path, written, free_bytes } = seen;
    let path = path.display();
    if let Err(cause) = written {
        let remedy = "make it writable for this user, or give another with --data-dir";
        return Finding::fail(check, format!("{path} can't be written: {cause}"), remedy);
    }
    match *free_bytes {
        Some(free) if free < needed => Finding::warn(
            check,
            format!("{path} has {} MiB free, of {} wanted", free >> 20, needed >> 20),
            "make room there, or give another with --data-dir",
        ),
        Some(free) => Finding::ok(check, format!("{path} can be written, {} MiB free", free >> 20)),
        None => Finding::ok(check, format!("{path} can be written")),
    }
}

/// What speaks on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// The API.
    Tcp,
    /// The cluster.
    Udp,
}

/// Listens on `addr` for a moment.
///
/// # Errors
/// Why it can't.
pub fn look_at_port(addr: SocketAddr, protocol: PortProtocol) -> io::Result<()> {
    match protocol {
        PortProtocol::Tcp => TcpListener::bind(addr).map(drop),
        PortProtocol::Udp => settings::bound(addr).map(drop),
    }
}

/// Whether something can listen there; `flag` sets another place.
pub fn judge_port(
    addr: SocketAddr,
    protocol: PortProtocol,
    seen: &io::Result<()>,
    flag: &str,
) -> Finding {
    let check = "port";
    let name = match protocol {
        PortProtocol::Tcp => "TCP",
        PortProtocol::Udp => "UDP",
    };
    let Err(cause) = seen else {
        return Finding::ok(check, format!("{addr} ({name}) is free"));
    };
    match cause.kind() {
        io::ErrorKind::AddrInUse => Finding::fail(
            check,
            format!("{addr} ({name}) is taken by another process"),
            format!("end that one, or choose another with {flag}"),
        ),
        io::ErrorKind::AddrNotAvailable => Finding::fail(
            check,
            format!("{addr} isn't an address of this machine"),
            format!("choose one that is, or 0.0.0.0 for all of them, with {flag}"),
        ),
        io::ErrorKind::PermissionDenied => Finding::fail(
            check,
            format!("this user may not listen on {addr} ({name})"),
            format!("choose a port from 1024 on with {flag}"),
        ),
        _ => Finding::fail(
            check,
            format!("nothing can listen on {addr} ({name}): {cause}"),
            format!("choose another with {flag}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use protocol::Severity;

    use super::*;

    fn is(finding: &Finding, severity: Severity, words: &[&str]) {
        let said = finding.to_string();
        assert_eq!(finding.severity, severity, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said} without one of {words:?}");
        let is_mended = severity == Severity::Ok || !finding.remedy.is_empty();
        assert!(is_mended, "nothing to do: {said}");
    }

    #[test]
    fn small_buffers_are_mended_by_the_line_that_is_printed() {
        let judged = |got| judge_buffers(&Ok(Buffers { wanted: 4 << 20, got }));
        is(&judged([4 << 20, 4 << 20]), Severity::Ok, &["4096 KiB"]);
        for got in [[212_992, 4 << 20], [4 << 20, 212_992]] {
            let line = "sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304";
            is(&judged(got), Severity::Warn, &["208 KiB", line]);
        }
        let none = Err(io::Error::other("none left"));
        is(&judge_buffers(&none), Severity::Fail, &["none left"]);
        let here = look_at_buffers().unwrap();
        assert!(here.got.iter().all(|got| (1..=4 << 20).contains(got)), "{here:?}");
    }

    #[test]
    fn few_open_files_are_told_with_the_way_to_more() {
        let of = |soft, hard| judge_open_files(Some(OpenFiles { soft, hard }), 4096);
        is(&of(4096, 4096), Severity::Ok, &["4096"]);
        is(&of(1024, 8192), Severity::Warn, &["1024", "ulimit -n 4096"]);
        is(&of(1024, 1024), Severity::Warn, &["1024 at most", "as root"]);
        assert!(look_at_open_files().unwrap().soft > 0);
    }

    #[test]
    fn a_folder_is_tried_out_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let seen = look_at_folder(&path);
        is(&judge_folder(&seen, 1), Severity::Ok, &["new can be written", "MiB free"]);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        is(&judge_folder(&seen, u64::MAX), Severity::Warn, &["--data-dir"]);
        fs::write(path.join("file"), "").unwrap();
        let seen = look_at_folder(&path.join("file"));
        is(&judge_folder(&seen, 1), Severity::Fail, &["can't be written", "--data-dir"]);
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_its_flag() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).unwrap();
        let socket = std::net::UdpSocket::bind(any).unwrap();
        let taken =
            [(listener.local_addr(), PortProtocol::Tcp), (socket.local_addr(), PortProtocol::Udp)];
        for (addr, protocol) in taken {
            let addr = addr.unwrap();
            let judged = judge_port(addr, protocol, &look_at_port(addr, protocol), "--there");
            is(&judged, Severity::Fail, &["taken", &addr.to_string(), "--there"]);
            is(&judge_port(any, protocol, &look_at_port(any, protocol), ""), Severity::Ok, &[]);
        }
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 7000));
        let seen = look_at_port(elsewhere, PortProtocol::Udp);
        let judged = judge_port(elsewhere, PortProtocol::Udp, &seen, "--there");
        is(&judged, Severity::Fail, &["isn't an address of this machine", "0.0.0.0"]);
    }
}
