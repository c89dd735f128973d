//! Machines of their own, as far as the network goes: namespaces, each with an interface `eth0`
//! and addresses of both families, on one bridge to which the test's own process has a door.
//!
//! Made and removed by the test, by root, with iproute2; what a killed run left is removed by the
//! next. The files are everybody's, except for each machine's home and its list of hosts.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// What each interface and namespace of ours is called first; then the process that made it.
const PREFIX: &str = "ag";

/// Machines on one network.
pub struct Network {
    bridge: String,
    pub machines: Vec<Machine>,
}

/// A network namespace with an end of a cable on the bridge.
pub struct Machine {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    namespace: String,
    // The other end of its cable.
    port: String,
    bridge: String,
    home: tempfile::TempDir,
}

impl Network {
    /// That many machines; none where they can't be made, which is said.
    pub fn new(num_machines: u8) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Err(cause) = possible() {
            eprintln!("skipped: what needs machines on a network ({cause})");
            return None;
        }
        remove_leftovers();
        let own = std::process::id();
        let bridge = format!("{PREFIX}{own:x}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        // Of the addresses that nobody outside has, a piece that nothing here uses.
        let used = ip(&["-4", "-brief", "address"]);
        let mut pieces = (0..0x1000_u32).map(|n| (own.wrapping_mul(7) + n) % 0x1000);
        let piece = pieces.find(|piece| !used.contains(&prefix(*piece))).unwrap();
        ip(&["link", "add", &bridge, "type", "bridge"]);
        let mut network = Self { bridge: bridge.clone(), machines: Vec::new() };
        let door = |number: u8| {
            let ipv6 = Ipv6Addr::new(0xfdab, 0x10a, piece as u16, 0, 0, 0, 0, number.into());
            (format!("{}{number}", prefix(piece)).parse::<Ipv4Addr>().unwrap(), ipv6)
        };
        let (ipv4, ipv6) = door(254);
        ip(&["address", "add", &format!("{ipv4}/24"), "dev", &bridge]);
        ip(&["address", "add", &format!("{ipv6}/64"), "dev", &bridge, "nodad"]);
        ip(&["link", "set", &bridge, "up"]);
        for number in 1..=num_machines {
            let (ipv4, ipv6) = door(number);
            let namespace = format!("{bridge}.{number}");
            let machine = Machine {
                ipv4,
                ipv6,
                port: namespace.clone(),
                bridge: bridge.clone(),
                home: tempfile::tempdir().unwrap(),
                namespace,
            };
            machine.plug_in();
            network.machines.push(machine);
        }
        Some(network)
    }
}

impl Network {
    /// The address of who isn't on a machine of it.
    pub fn door(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.machines[0].ipv4.octets();
        Ipv4Addr::new(a, b, c, 254)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for machine in &self.machines {
            remove(&machine.namespace);
        }
        // While a test fails nothing here may.
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).output();
    }
}

impl Machine {
    fn plug_in(&self) {
        let Self { namespace, port, bridge, .. } = self;
        ip(&["netns", "add", namespace]);
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", namespace];
        ip(&[&["link", "add", port][..], &peer].concat());
        ip(&["link", "set", port, "master", bridge, "up"]);
        self.run("ip", &["link", "set", "lo", "up"]);
        self.run("ip", &["address", "add", &format!("{}/24", self.ipv4), "dev", "eth0"]);
        self.run("ip", &["address", "add", &format!("{}/64", self.ipv6), "dev", "eth0", "nodad"]);
        self.run("ip", &["link", "set", "eth0", "up"]);
    }

    /// A program that will run on this machine, at home there. Its process id is the child's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program.as_ref());
        command.env("HOME", self.home.path()).env_remove("XDG_DATA_HOME");
        command
    }

    /// Runs a program on this machine, which must succeed; what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program).args(arguments))
    }

    /// What `deed` gives, done on this machine: sockets that it opens stay there.
    pub fn enter<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(Path::new("/run/netns").join(&self.namespace)).unwrap();
        let there = || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            deed()
        };
        // A thread that has gone there doesn't come back.
        std::thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// What comes to it and what it sends passes so fast at most, as in `200mbit`.
    pub fn limit(&self, rate: &str) {
        let limit = |dev| ["qdisc", "replace", "dev", dev, "root", "tbf", "rate", rate];
        let more = ["burst", "64kb", "latency", "50ms"];
        succeed(Command::new("tc").args(limit(&self.port)).args(more));
        self.run("tc", &[&limit("eth0")[..], &more].concat());
    }

    /// Where its user's files are.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Names that only this machine knows, as in /etc/hosts.
    pub fn set_hosts(&self, lines: &str) {
        let folder = etc(&self.namespace);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts"), format!("127.0.0.1 localhost\n{lines}\n")).unwrap();
    }

    /// Pulls the cable: nothing comes or goes any more, and nobody is told.
    pub fn cut_off(&self) {
        ip(&["link", "set", &self.port, "nomaster"]);
    }

    /// Plugs it in again.
    pub fn reconnect(&self) {
        ip(&["link", "set", &self.port, "master", &self.bridge]);
    }

    /// From now on what comes from `other` is dropped. Needs nftables.
    pub fn drop_from(&self, other: &Self) {
        let Self { ipv4, ipv6, .. } = other;
        self.run("nft", &["add", "table", "inet", PREFIX]);
        let chain = "{ type filter hook input priority 0; }";
        self.run("nft", &["add", "chain", "inet", PREFIX, "input", chain]);
        for (family, addr) in [("ip", ipv4.to_string()), ("ip6", ipv6.to_string())] {
            let rule = ["inet", PREFIX, "input", family, "saddr", &addr, "drop"];
            self.run("nft", &[&["add", "rule"][..], &rule].concat());
        }
    }

    /// Nothing is dropped any more.
    pub fn drop_nothing(&self) {
        self.run("nft", &["delete", "table", "inet", PREFIX]);
    }
}

/// Whether there can be machines here; says that what needs them is skipped where not.
pub fn are_possible() -> bool {
    possible().inspect_err(|cause| eprintln!("skipped: what needs machines ({cause})")).is_ok()
}

/// Whether `program` is installed; says that a part of a test is skipped where it isn't.
pub fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: what needs {program} (it isn't installed)");
    }
    found
}

fn possible() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("only root can make network namespaces".into());
    }
    let probe = format!("{PREFIX}{:x}-probe", std::process::id());
    let add = Command::new("ip").args(["netns", "add", &probe]).output();
    let add = add.map_err(|_| "there is no ip: install iproute2".to_owned())?;
    remove(&probe);
    match add.status.success() || said(&add).contains("File exists") {
        true => Ok(()),
        false => Err(said(&add)),
    }
}

/// The first three numbers of a piece's addresses.
fn prefix(piece: u32) -> String {
    format!("10.{}.{}.", 200 + piece / 256, piece % 256)
}

/// What a run that was killed has left, by the process that it was.
fn remove_leftovers() {
    let is_left = |name: &str| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let pid = pid.and_then(|(pid, _)| u32::from_str_radix(pid, 16).ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    for line in ip(&["netns", "list"]).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if is_left(name) {
            // Its processes first: they would keep it.
            let pids = Command::new("ip").args(["netns", "pids", name]).output().unwrap();
            for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            remove(name);
        }
    }
    for line in ip(&["-brief", "link", "show", "type", "bridge"]).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if is_left(name) {
            let _ = Command::new("ip").args(["link", "delete", name]).output();
        }
    }
}

fn remove(namespace: &str) {
    let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
    let _ = Command::new("ip").args(["link", "delete", namespace]).output();
    let _ = std::fs::remove_dir_all(etc(namespace));
}

/// Files that take the place of those in /etc.
fn etc(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

fn ip(arguments: &[&str]) -> String {
    succeed(Command::new("ip").args(arguments))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Whether `machine` gets through to who listens there.
    fn reaches(machine: &Machine, addr: SocketAddr) -> bool {
        let timeout = Duration::from_secs(1);
        let connected = machine.enter(move || TcpStream::connect_timeout(&addr, timeout));
        connected.is_ok_and(|mut stream| {
            stream.set_read_timeout(Some(timeout)).unwrap();
            // Nobody sends anything: it hears the end, or nothing.
            stream.read(&mut [0]).is_ok()
        })
    }

    #[test]
    fn machines_reach_each_other_until_a_cable_is_pulled() {
        let Some(network) = Network::new(3) else { return };
        let [one, two, three] = &network.machines[..] else { panic!() };
        let listener = one.enter(|| TcpListener::bind("[::]:7").unwrap());
        // Whoever connects is heard and gets nothing.
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let addrs = [IpAddr::from(one.ipv4), IpAddr::from(one.ipv6)];
        let addrs = addrs.map(|ip| SocketAddr::new(ip, 7));
        assert!(addrs.iter().all(|addr| reaches(two, *addr) && reaches(three, *addr)));
        assert!(reaches(one, "127.0.0.1:7".parse().unwrap()));
        assert!(!reaches(two, "127.0.0.1:7".parse().unwrap()), "that is another machine");
        // Who tests has a door.
        TcpStream::connect_timeout(&addrs[0], Duration::from_secs(1)).unwrap();
        two.cut_off();
        assert!(!reaches(two, addrs[0]) && !reaches(two, addrs[1]) && reaches(three, addrs[0]));
        two.reconnect();
        assert!(addrs.iter().all(|addr| reaches(two, *addr)));
        two.set_hosts(&format!("{} door.example", one.ipv4));
        assert!(two.run("cat", &["/etc/hosts"]).contains("door.example"));
        assert!(one.home() != two.home() && one.run("env", &[]).contains("HOME="));
        if has("nft") {
            one.drop_from(two);
            assert!(!reaches(two, addrs[0]) && reaches(three, addrs[0]));
            one.drop_nothing();
            assert!(reaches(two, addrs[0]));
        }
        let (bridge, name) = (network.bridge.clone(), one.namespace.clone());
        drop(network);
        let left = ip(&["netns", "list"]) + &ip(&["-brief", "link"]);
        assert!(!left.contains(&bridge) && !etc(&name).exists(), "{left}");
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        // No process has this number: it is more than there can be.
        let left = format!("{PREFIX}7fffffff-0");
        if possible().is_err() {
            return;
        }
        ip(&["netns", "add", &format!("{left}.1")]);
        remove_leftovers();
        assert!(!ip(&["netns", "list"]).contains(&left));
    }
}
