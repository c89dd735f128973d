//! Nodes' sessions: a control and a data connection each. When either ends the session is over and
//! the other is closed, so that no node is half there and its side begins anew.

use dashmap::DashMap;
use protocol::{NodeId, SessionId};
use tracing::{debug, warn};
use transport::{Connection, ControlStream, NodeServerHandle};

use crate::cluster::Input;
use crate::stages::Stages;

/// Sessions that are open, by their control connections.
#[derive(Debug, Default)]
pub struct Sessions {
    open: DashMap<SessionId, Connection>,
}

impl Sessions {
    /// A node's control connection: from its greeting to the end of its session.
    pub async fn serve(
        &self,
        node: NodeId,
        control: Connection,
        stages: &Stages,
        server: &NodeServerHandle,
        tell: impl Fn(Input),
    ) {
        let (session, stream) = match ControlStream::accept(&control).await {
            Ok(greeted) => greeted,
            Err(cause) => {
                warn!(%node, %cause, "a node's control stream can't be opened");
                control.close(&cause.to_string());
                return;
            }
        };
        let Some(data) = stages.connection(node, session).await else {
            let cause = "the data connection of this session doesn't come";
            warn!(%node, %session, cause, "a node's session can't be opened");
            control.close(cause);
            return;
        };
        self.open.insert(session, control.clone());
        tell(Input::Connected { node, session });
        let cause = match server.accept(stream) {
            Ok(()) => tokio::select! {
                cause = control.closed() => cause,
                cause = data.closed() => format!("its data connection: {cause}"),
            },
            Err(cause) => cause.to_string(),
        };
        debug!(%node, %session, cause, "a session is over");
        self.open.remove(&session);
        control.close(&cause);
        data.close(&cause);
        tell(Input::Lost { node, session, cause });
    }

    /// Closes a session's connections, if they are open: its node is to begin a new one.
    pub fn disconnect(&self, session: SessionId) {
        if let Some(control) = self.open.get(&session) {
            control.close("the coordinator has ended the session");
        }
    }
}
