//! What TLS demands of the two sides of each kind of connection.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::certs::Identity;
use crate::error::TransportError;

/// Control: ractor_cluster, heartbeats.
pub(crate) const CONTROL: &[u8] = b"autoglm-ctl/1";
/// Data: frames.
pub(crate) const DATA: &[u8] = b"autoglm-data/1";
/// Joining: get a certificate.
pub(crate) const JOIN: &[u8] = b"autoglm-join/1";

/// For the side that accepts. A client without a certificate gets through the handshake, so that
/// it can join; who may do what is decided by the protocol that was agreed on, right after it.
pub(crate) fn server(identity: &Identity) -> Result<QuicServerConfig, TransportError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?.into(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(failed)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.private_key().into())
        .map_err(failed)?;
    config.alpn_protocols = vec![CONTROL.to_vec(), DATA.to_vec(), JOIN.to_vec()];
    // A session that is taken up again would outlive the certificate that it began with.
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(failed)
}

/// For the side that dials a member of the cluster: both prove who they are.
pub(crate) fn client(
    identity: &Identity,
    alpn: &'static [u8],
) -> Result<QuicClientConfig, TransportError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain.clone(), identity.private_key().into())
        .map_err(failed)?;
    offering(config, &[alpn])
}

/// For a node that isn't a member yet, on loopback only: whoever listens there is taken for the
/// coordinator. Everything after joining is verified against the authority that it names.
pub(crate) fn stranger() -> Result<QuicClientConfig, TransportError> {
    offering(unverified()?.with_no_client_auth(), &[JOIN])
}

/// An attacker's client: it trusts anybody, and shows and asks for what it likes.
#[cfg(test)]
pub(crate) fn attacker(identity: Option<&Identity>, alpns: &[&[u8]]) -> QuicClientConfig {
    let config = unverified().unwrap();
    let config = match identity {
        Some(it) => config.with_client_auth_cert(it.chain.clone(), it.private_key().into()),
        None => Ok(config.with_no_client_auth()),
    };
    offering(config.unwrap(), alpns).unwrap()
}

fn unverified() -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TransportError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(Unverified)))
}

fn offering(mut config: ClientConfig, alpns: &[&[u8]]) -> Result<QuicClientConfig, TransportError> {
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(failed)
}

fn roots(identity: &Identity) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority.clone()).map_err(failed)?;
    Ok(roots)
}

/// Passed explicitly everywhere, so that no process-wide default matters.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn failed(cause: impl ToString) -> TransportError {
    TransportError::Certificates(cause.to_string())
}

/// Takes any certificate, but checks that the peer holds its key.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
