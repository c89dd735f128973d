//! Which server is asked, and how: what every command that asks one takes.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use loadgen::client::request::{Endpoint, Parameters};
use loadgen::client::{Connections, HeaderMap, HeaderName, HeaderValue, Manner, Server, Trust};

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
    /// A key, sent as `authorization: Bearer KEY`; better in the variable, which no list of
    /// processes shows.
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// A further header of every request, as in 'x-team: search'. Can be given often.
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// For https: a PEM file with the authorities to trust, instead of the system's.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    cacert: Option<PathBuf>,
    /// For https: takes whoever answers for the server.
    #[arg(long)]
    insecure: bool,
}

/// A header; a value is never shown, since it may be a key.
fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as in 'x-team: search'")?;
    let wrong = |_| format!("{:?} is no header's name", name.trim());
    let name = name.trim().parse().map_err(wrong)?;
    Ok((name, secret(value).map_err(|said| format!("the value {said}"))?))
}

fn secret(value: &str) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::from_str(value.trim())
        .map_err(|_| "has a character that no header can hold")?;
    value.set_sensitive(true);
    Ok(value)
}

impl ServerArguments {
    /// The server and what to ask it, the model's name asked for if it isn't given.
    pub(crate) async fn resolve(&self, max_tokens: NonZeroU32) -> Result<(Server, Parameters)> {
        let timeout = Duration::from_secs(self.timeout.get());
        let server = Server::asked(&self.url, timeout, self.manner()?)?;
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

    fn manner(&self) -> Result<Manner> {
        let mut headers = HeaderMap::new();
        if let Some(key) = self.api_key.as_deref().filter(|key| !key.trim().is_empty()) {
            let value = secret(&format!("Bearer {}", key.trim()));
            let value = value.map_err(|said| anyhow::anyhow!("the key of the API {said}"))?;
            headers.insert("authorization", value);
        }
        // One that is written out wins over the variable.
        for (name, value) in &self.header {
            headers.insert(name, value.clone());
        }
        let trust = match &self.cacert {
            Some(file) => Trust::File(file.clone()),
            None if self.insecure => Trust::Anyone,
            None => Trust::System,
        };
        Ok(Manner { connections: self.connections, trust, headers })
    }
}
