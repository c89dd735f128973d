//! A node's session: one stay with a coordinator, over two connections. When either ends, or
//! anything else that the session can't do without, it is over as a whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use protocol::message::{CoordinatorMsg, Drain, Leaving, NodeMsg};
use protocol::{NodeId, NodeReport, SessionId};
use ractor::{Actor, ActorRef};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tracing::info;
use transport::{
    Connection, Endpoint, Incoming, JoinError, Joined, NodeServerHandle, PeerName, Purpose,
};

use crate::actor::{Gate, Node, NodeActor};
use crate::device_thread::DeviceThread;
use crate::joining::Papers;
use crate::links::Links;
use crate::run::Options;
use crate::weights::WeightStore;

/// Why a session is over.
#[derive(Debug)]
pub(crate) enum SessionEnd {
    /// The coordinator can't be talked to any more.
    Connection(String),
    /// An adapter can't be used any more.
    Device(String),
}

/// The time between joining a coordinator and losing it.
pub(crate) struct Session {
    node: NodeId,
    id: SessionId,
    gate: Gate,
    devices: Vec<DeviceThread>,
    endpoint: Endpoint,
    data: Connection,
    control: Connection,
    node_server: NodeServerHandle,
    actor: ActorRef<NodeMsg>,
    // Ends with the actor, whatever ended that.
    acting: JoinHandle<()>,
    // None of them ends by itself while the session lasts; each says what it was.
    tasks: JoinSet<&'static str>,
    // Resolves once nothing is held any more.
    released: Arc<Notify>,
}

impl Session {
    /// Opens the connections, and offers `devices` to the coordinator, which has let this node in.
    ///
    /// # Errors
    /// When the coordinator can't be reached any more, or the settings that it gave can't work.
    pub(crate) async fn open(
        options: &Options,
        coordinator: SocketAddr,
        joined: Joined,
        node: NodeId,
        papers: &Papers,
        (weights, devices): (&Arc<WeightStore>, &[DeviceThread]),
    ) -> Result<Self> {
        let Joined { identity, transport: config, cookie, is_open } = joined;
        let is_open = is_open || options.advertise.is_some();
        let newest = options.wire_version;
        let bind = |ip: IpAddr| {
            Endpoint::speaking(newest, SocketAddr::new(ip, 0), Some(identity.clone()), &config)
        };
        let endpoint = match coordinator {
            // Neighbours may be of either family, on whichever the coordinator is met.
            _ if is_open => bind(Ipv6Addr::UNSPECIFIED.into())
                .or_else(|_| bind(Ipv4Addr::UNSPECIFIED.into()))?,
            SocketAddr::V4(_) => bind(Ipv4Addr::LOCALHOST.into())?,
            SocketAddr::V6(_) => bind(Ipv6Addr::LOCALHOST.into())?,
        };
        let mut data_addr = endpoint.local_addr();
        if let Some(ip) = options.advertise {
            data_addr.set_ip(ip);
        }
        let connected = async {
            let data = endpoint.dial(coordinator, Purpose::Data, PeerName::Coordinator).await?;
            let id = data.session()?;
            let control =
                endpoint.dial(coordinator, Purpose::Control, PeerName::Coordinator).await?;
            // Each session has its own: two of one name are taken for one.
            let node_server = transport::start_node_server(&format!("node-{id}"), &cookie).await?;
            Ok::<_, anyhow::Error>((data, id, control, node_server))
        };
        let (data, id, control, node_server) = match connected.await {
            Ok(connected) => connected,
            Err(cause) => {
                endpoint.close("the node could not connect").await;
                return Err(cause);
            }
        };

        let links = Arc::new(Links::new(node, endpoint.clone(), data.clone(), &config));
        // Closes the connection when it ends.
        tokio::spawn(Arc::clone(&links).serve(data.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(endpoint.clone(), Arc::clone(&links), Arc::clone(weights)));
        let told = (papers.clone(), config);
        tasks.spawn(renew(endpoint.clone(), coordinator, (node, newest), told));
        let report = NodeReport {
            node,
            session: id,
            hostname: sysinfo::System::host_name().unwrap_or_else(|_| "unknown".into()),
            pid: std::process::id(),
            data_addr,
            // The coordinator knows it from the certificate.
            pool: options.pool.clone(),
            labels: options.labels.clone(),
            adapters: devices.iter().map(|device| device.report.clone()).collect(),
            held: Vec::new(),
        };
        let wire_version = data.wire_version().min(control.wire_version());
        let gate = Gate { wire_version };
        let devices = devices.to_vec();
        let tracer = options.tracer.clone();
        let weights = Arc::clone(weights);
        let released = Arc::new(Notify::new());
        let told = Arc::clone(&released);
        let adapters = devices.clone();
        let held = Node { report, devices: adapters, links, weights, tracer, released: told, gate };
        let held = Arc::new(held);
        let (actor, acting) = Actor::spawn(None, NodeActor, held).await?;
        let session = Self {
            node,
            id,
            gate,
            devices,
            endpoint,
            data,
            control,
            node_server,
            actor,
            acting,
            tasks,
            released,
        };
        match session.node_server.connect(&session.control, id).await {
            Ok(()) => {
                info!(%node, session = %id, %coordinator, wire_version, "joined");
                Ok(session)
            }
            Err(cause) => {
                session.end().await;
                Err(cause.into())
            }
        }
    }

    /// Why it is over, once it is.
    pub(crate) async fn ended(&mut self) -> SessionEnd {
        let Self { devices, data, control, acting, tasks, .. } = self;
        let lost = devices.iter().map(|device| Box::pin(device.lost()));
        let cause = tokio::select! {
            cause = control.closed() => cause,
            cause = data.closed() => format!("its data connection: {cause}"),
            _ = acting => "the node's actor has ended".into(),
            Some(ended) = tasks.join_next() => match ended {
                Ok(what) => format!("the task that {what} has ended"),
                Err(cause) => format!("a task has failed: {cause}"),
            },
            (cause, number, _) = futures::future::select_all(lost), if !devices.is_empty() => {
                let name = &devices[number].report.name;
                return SessionEnd::Device(format!("its adapter {name} is lost: {cause}"));
            }
        };
        SessionEnd::Connection(cause)
    }

    /// Asks that what it holds goes elsewhere, and waits for that as long as the session stands.
    pub(crate) async fn drain(&mut self) {
        info!("asked to end: waiting until nothing is held any more");
        let drain = Drain { node: self.node, session: self.id };
        self.gate.tell(CoordinatorMsg::Drain(drain.into())).await;
        let released = Arc::clone(&self.released);
        tokio::select! {
            () = released.notified() => {}
            _ = self.ended() => {}
        }
    }

    /// Says goodbye and why, so that nobody has to wait for silence.
    pub(crate) async fn leave(self, cause: &str) {
        info!(cause, "leaving");
        let leaving = Leaving { node: self.node, session: self.id, cause: cause.to_owned() };
        self.gate.tell(CoordinatorMsg::Leaving(leaving.into())).await;
        // The cast is on its way once the session's writer has run; closing waits for it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.end().await;
    }

    /// Ends what is left of it.
    pub(crate) async fn end(mut self) {
        self.tasks.abort_all();
        self.actor.stop_and_wait(None, Some(Duration::from_secs(2))).await.ok();
        self.node_server.stop().await;
        self.endpoint.close("the node stopped").await;
    }
}

/// Neighbours dial to bring activations, and to get weights.
async fn accept(endpoint: Endpoint, links: Arc<Links>, weights: Arc<WeightStore>) -> &'static str {
    while let Some(incoming) = endpoint.accept().await {
        if let Incoming::Data(connection) = incoming {
            tokio::spawn(transport::serve_pieces(connection.clone(), Arc::clone(&weights)));
            tokio::spawn(Arc::clone(&links).serve(connection));
        }
    }
    "accepts neighbours"
}

async fn renew(
    endpoint: Endpoint,
    coordinator: SocketAddr,
    (node, newest): (NodeId, u16),
    (papers, config): (Papers, protocol::config::Transport),
) -> &'static str {
    let renew = |identity| {
        let (papers, told) = (&papers, (&config, newest));
        async move {
            let renewed = transport::renew(coordinator, node, &identity, told).await?.identity;
            papers.keep(&renewed);
            Ok::<_, JoinError>(renewed)
        }
    };
    endpoint.keep_renewed(renew).await;
    "renews the certificate"
}
