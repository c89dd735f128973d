//! What QUIC and the socket are told: the one place where measured numbers stand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::config::Transport;
use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    TransportConfig, VarInt,
};

use crate::endpoint::Purpose;
use crate::socket::Socket;

/// quinn sends batches of ten segments, and UDP caps a batch at 64 KiB: larger packets stall.
/// On links with smaller ones discovery stops where the path does.
const MAX_PACKET_BYTES: u16 = 6500;

/// Ten packets, as RFC 9002 (7.2) has it: quinn counts them with the size that packets begin with,
/// and two of ours would fill that. A connection that is closed while its window is full doesn't
/// say why: quinn-proto (up to 0.11.19) sends nothing more then.
const FIRST_WINDOW_BYTES: u64 = 10 * MAX_PACKET_BYTES as u64;

/// Bursts of activations fit the socket's buffers.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Links from one peer at once. The next one waits.
const MAX_LINKS: u32 = 64;

/// What somebody who hasn't shown a certificate may make us hold: a greeting passes in pieces.
const STRANGER_WINDOW_BYTES: u32 = 16 << 10;

/// Round trips inside a cluster are far shorter than quinn's first guess, so a lost first packet is
/// sent again after 300 ms rather than a second.
const FIRST_RTT: Duration = Duration::from_millis(100);

pub(crate) fn socket(addr: SocketAddr) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
    #[cfg(test)]
    if turmoil::in_simulation() {
        return crate::simulation::wire::bind(addr);
    }
    let socket = bound(addr)?;
    socket.set_nonblocking(true)?;
    Ok(Arc::new(Socket::new(socket.into())?))
}

/// A socket with the buffers that we want.
pub(crate) fn bound(addr: SocketAddr) -> std::io::Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // As much as the system allows; less is slower, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    if addr.is_ipv6() {
        // Whatever the system's habit is, every address means those of both families.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}

pub(crate) fn endpoint() -> EndpointConfig {
    let mut endpoint = EndpointConfig::default();
    endpoint.max_udp_payload_size(MAX_PACKET_BYTES).expect("every packet size from 1200 is legal");
    #[cfg(test)]
    endpoint.rng_seed(crate::simulation::wire::chance());
    endpoint
}

/// For the side that accepts. Whoever dials is a stranger until [`welcome`]. It gives no signs of
/// life of its own, since it answers each of the other side's: half the idle load, and its count
/// of silence begins with the last packet that it heard.
pub(crate) fn accepting(config: &Transport) -> TransportConfig {
    let mut transport = common(config, STRANGER_WINDOW_BYTES);
    transport
        .max_idle_timeout(idle(config.idle_timeout_ms))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

/// A stranger has turned out to be a member: what its kind of connection needs.
pub(crate) fn welcome(connection: &quinn::Connection, purpose: Purpose, config: &Transport) {
    let window = window(purpose, config);
    connection.set_receive_window(VarInt::from_u32(window));
    connection.set_send_window(2 * u64::from(window));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(max_links(purpose)));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(max_asked(purpose, config)));
}

/// For the side that dials.
pub(crate) fn dialling(config: &Transport, purpose: Purpose) -> TransportConfig {
    let mut transport = common(config, window(purpose, config));
    transport
        .keep_alive_interval(Some(keep_alive(purpose, config)))
        // The shorter of the two sides' counts once they have met, so the acceptor's decides when
        // silence is death; until then it is the time that dialling may take.
        .max_idle_timeout(idle(config.idle_timeout_ms.max(config.connect_timeout_ms)))
        .max_concurrent_bidi_streams(VarInt::from_u32(max_asked(purpose, config)))
        .max_concurrent_uni_streams(VarInt::from_u32(max_links(purpose)));
    if purpose == Purpose::Control {
        // Signs of life are answered at once: an answer that waits for more to say is a timer of
        // its own, four times a second for each node.
        let mut at_once = AckFrequencyConfig::default();
        at_once.ack_eliciting_threshold(VarInt::from_u32(0));
        transport.ack_frequency_config(Some(at_once));
    }
    transport
}

/// How often whoever dialled gives a sign of life. The control connection is a process's pulse.
/// Others share its fate; theirs find a way that is cut between two nodes, by the silence that the
/// accepting side hears.
fn keep_alive(purpose: Purpose, config: &Transport) -> Duration {
    let pulse = Duration::from_millis(config.keep_alive_ms);
    match purpose {
        Purpose::Control => pulse,
        Purpose::Data => pulse.max(Duration::from_millis(config.idle_timeout_ms) * 2 / 3),
    }
}

fn common(config: &Transport, window: u32) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_PACKET_BYTES);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(FIRST_WINDOW_BYTES);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .initial_rtt(FIRST_RTT)
        // One link may fill the connection's window; that one is the limit.
        .stream_receive_window(VarInt::from_u32(config.data_window_bytes))
        .receive_window(VarInt::from_u32(window))
        .send_window(2 * u64::from(window))
        .datagram_receive_buffer_size(None);
    transport
}

fn window(purpose: Purpose, config: &Transport) -> u32 {
    match purpose {
        Purpose::Control => config.control_window_bytes,
        Purpose::Data => config.data_window_bytes,
    }
}

fn max_links(purpose: Purpose) -> u32 {
    match purpose {
        Purpose::Control => 0,
        Purpose::Data => MAX_LINKS,
    }
}

/// What the other side may ask for at once.
fn max_asked(purpose: Purpose, config: &Transport) -> u32 {
    match purpose {
        Purpose::Control => 1,
        Purpose::Data => config.max_pieces,
    }
}

fn idle(milliseconds: u64) -> Option<IdleTimeout> {
    let milliseconds = u32::try_from(milliseconds).unwrap_or(u32::MAX);
    Some(IdleTimeout::from(VarInt::from_u32(milliseconds)))
}
