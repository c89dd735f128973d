//! A wire between processes that knows QUIC connections apart, and cuts one of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

/// Bytes of a connection id, where a packet doesn't say.
const ID_BYTES: usize = 8;

/// A wire in front of a socket.
pub struct Wire {
    /// Where it is dialled.
    pub addr: SocketAddr,
    dialled: Arc<Mutex<Dialled>>,
}

/// Connections that were dialled through it.
#[derive(Debug, Default)]
struct Dialled {
    /// By the ids that either side chose: which socket dialled, and its how-many-th it is.
    known: HashMap<Vec<u8>, (SocketAddr, usize)>,
    num_of: HashMap<SocketAddr, usize>,
    cut: Vec<(SocketAddr, usize)>,
}

impl Wire {
    pub async fn start(to: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = near.local_addr().unwrap();
        let dialled = Arc::new(Mutex::new(Dialled::default()));
        let seen = Arc::clone(&dialled);
        tokio::spawn(async move {
            let mut sockets = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
            let mut packet = vec![0; 65_536];
            loop {
                let Ok((length, dialler)) = near.recv_from(&mut packet).await else { continue };
                let packet = &packet[..length];
                if let Entry::Vacant(new) = sockets.entry(dialler) {
                    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    far.connect(to).await.unwrap();
                    let way = (Arc::clone(&far), Arc::clone(&near), Arc::clone(&seen));
                    tokio::spawn(back(dialler, way));
                    new.insert(far);
                }
                if seen.lock().unwrap().passes(dialler, packet, true) {
                    let _ = sockets[&dialler].send(packet).await;
                }
            }
        });
        Self { addr, dialled }
    }

    /// Nothing passes any more on the first connection of every socket that has dialled at least
    /// two: of a member of a cluster, that is its data connection.
    pub fn cut_first_of_two(&self) -> usize {
        let mut dialled = self.dialled.lock().unwrap();
        let members: Vec<_> = dialled
            .num_of
            .iter()
            .filter(|(_, num)| **num >= 2)
            .map(|(dialler, _)| (*dialler, 0))
            .collect();
        dialled.cut.clone_from(&members);
        members.len()
    }
}

async fn back(
    dialler: SocketAddr,
    (far, near, seen): (Arc<UdpSocket>, Arc<UdpSocket>, Arc<Mutex<Dialled>>),
) {
    let mut packet = vec![0; 65_536];
    loop {
        let Ok(length) = far.recv(&mut packet).await else { continue };
        if seen.lock().unwrap().passes(dialler, &packet[..length], false) {
            let _ = near.send_to(&packet[..length], dialler).await;
        }
    }
}

impl Dialled {
    /// Learns whose a packet is, by the ids that it names in the clear.
    fn passes(&mut self, dialler: SocketAddr, packet: &[u8], is_going: bool) -> bool {
        let Some((to, from)) = ids(packet) else { return true };
        let known = self.known.get(&to).or(from.as_ref().and_then(|from| self.known.get(from)));
        let connection = match (known, &from) {
            (Some(known), _) => *known,
            // The first packet of a connection: its dialler has just chosen an id.
            (None, Some(_)) if is_going => {
                let num = self.num_of.entry(dialler).or_default();
                *num += 1;
                (dialler, *num - 1)
            }
            (None, _) => return true,
        };
        if let Some(from) = from {
            self.known.insert(from, connection);
        }
        !self.cut.contains(&connection)
    }
}

/// To whom a packet is, and from whom, if it says: ids of a connection's ends.
fn ids(packet: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let is_long = packet.first()? & 0x80 != 0;
    if !is_long {
        return Some((packet.get(1..1 + ID_BYTES)?.to_vec(), None));
    }
    // First byte, version, and two ids with their lengths before them.
    let to_end = 6 + usize::from(*packet.get(5)?);
    let from_end = to_end + 1 + usize::from(*packet.get(to_end)?);
    let (to, from) = (packet.get(6..to_end)?, packet.get(to_end + 1..from_end)?);
    Some((to.to_vec(), Some(from.to_vec())))
}
