//! Which server is asked, and how: what every command that asks one takes.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use anyhow::Result;
use bench::client::request::{Endpoint, Parameters};
use bench::client::{Connections, Server};

#[derive(clap::Args)]
pub(crate) struct ServerArguments {
    /// The server's address, with or without /v1.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// The model's name [default: the first that the server lists].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// `chat`, or `completions` for a model without a chat template.
    #[arg(long, default_value = "chat")]
    endpoint: Endpoint,
    /// Sampling temperature [default: the server's].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Seconds that one answer may take.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    timeout: NonZeroU64,
    /// `pooled`, or `per-request`: each request makes a connection of its own.
    #[arg(long, value_name = "POLICY", default_value = "pooled")]
    connections: Connections,
}

impl ServerArguments {
    /// The server and what to ask it, the model's name asked for if it isn't given.
    pub(crate) async fn resolve(&self, max_tokens: NonZeroU32) -> Result<(Server, Parameters)> {
        let server = Server::new(&self.url, Duration::from_secs(self.timeout.get()))?;
        let server = server.over(self.connections)?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => server.first_model().await?,
        };
        let parameters = Parameters {
            model,
            endpoint: self.endpoint,
            max_tokens: max_tokens.get(),
            temperature: self.temperature,
            ..Parameters::default()
        };
        Ok((server, parameters))
    }
}
