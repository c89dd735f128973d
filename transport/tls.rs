//! What TLS demands of the two sides of each kind of connection.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::certs::Identity;
use crate::error::TransportError;
use crate::spoken::{self, CONTROL, DATA, JOIN, Protocol};
use crate::token::Token;

/// What a node says of a coordinator that its token isn't of.
pub(crate) const OTHER_COORDINATOR: &str = "the join token is of another coordinator";

/// For the side that accepts, up to this wire version. A client without a certificate gets through
/// the handshake, so that it can join; who may do what is decided by the protocol that was agreed
/// on, right after it.
pub(crate) fn server(identity: &Identity, newest: u16) -> Result<QuicServerConfig, TransportError> {
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
    let names = [CONTROL, DATA, JOIN].into_iter();
    let names = names.flat_map(|it| spoken::names(&it, newest).collect::<Vec<_>>());
    // The first that the other side offers, too, is what is spoken.
    config.alpn_protocols = names.map(<[u8]>::to_vec).collect();
    // A session that is taken up again would outlive the certificate that it began with.
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(failed)
}

/// For a listener that nobody may pass: it has no certificate to show, so every handshake ends.
pub(crate) fn closed() -> Result<ServerConfig, TransportError> {
    #[derive(Debug)]
    struct Nobody;
    impl ResolvesServerCert for Nobody {
        fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }
    }
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Nobody)))
}

/// For the side that dials a member of the cluster: both prove who they are.
pub(crate) fn client(
    identity: &Identity,
    protocol: &Protocol,
    newest: u16,
) -> Result<QuicClientConfig, TransportError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain.clone(), identity.private_key().into())
        .map_err(failed)?;
    offering(config, spoken::names(protocol, newest))
}

/// For a node that isn't a member yet: it takes only the coordinator of the authority that its
/// token is of, so that it proves nothing to anybody else.
pub(crate) fn stranger(token: &Token, newest: u16) -> Result<QuicClientConfig, TransportError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(token.clone())))
        .with_no_client_auth();
    offering(config, spoken::names(&JOIN, newest))
}

fn offering<'a>(
    mut config: ClientConfig,
    names: impl Iterator<Item = &'a [u8]>,
) -> Result<QuicClientConfig, TransportError> {
    config.alpn_protocols = names.map(<[u8]>::to_vec).collect();
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

/// Takes certificates of the authority that a token is of, which the other side shows along.
#[derive(Debug)]
struct Pinned(Token);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = || rustls::Error::General(OTHER_COORDINATOR.into());
        let authority = intermediates.iter().find(|it| self.0.is_of(it)).ok_or_else(wrong)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), provider())
            .build()
            .map_err(|_| wrong())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
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

/// An attacker's client: it trusts anybody, and shows and asks for what it likes.
#[cfg(test)]
pub(crate) fn attacker<'a>(
    identity: Option<&Identity>,
    names: impl IntoIterator<Item = &'a [u8]>,
) -> QuicClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let config = match identity {
        Some(it) => config.with_client_auth_cert(it.chain.clone(), it.private_key().into()),
        None => Ok(config.with_no_client_auth()),
    };
    offering(config.unwrap(), names.into_iter()).unwrap()
}

/// Takes any certificate.
#[cfg(test)]
#[derive(Debug)]
struct Anybody;

#[cfg(test)]
impl ServerCertVerifier for Anybody {
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
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
