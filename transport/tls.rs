//! What TLS demands of the two sides of each kind of connection.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

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
    QuicServerConfig::try_from(config).map_err(failed)
}

/// For the side that dials a member of the cluster: both prove who they are.
pub(crate) fn client(identity: &Identity, alpn: &[u8]) -> Result<QuicClientConfig, TransportError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain.clone(), identity.private_key().into())
        .map_err(failed)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    QuicClientConfig::try_from(config).map_err(failed)
}

/// For a node that isn't a member yet, on loopback only: whoever listens there is taken for the
/// coordinator. Everything after joining is verified against the authority that it names.
pub(crate) fn stranger() -> Result<QuicClientConfig, TransportError> {
    anonymous(JOIN)
}

/// Without a certificate: good for joining only.
pub(crate) fn anonymous(alpn: &[u8]) -> Result<QuicClientConfig, TransportError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Loopback))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
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
struct Loopback;

impl ServerCertVerifier for Loopback {
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
