//! Whose certificate is taken of a server that is asked over TLS.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Who may say that a server is the one of its name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Trust {
    /// The authorities that this system trusts, or `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    #[default]
    System,
    /// The certificates of a PEM file, and no others.
    File(PathBuf),
    /// Nobody has to: whoever answers is taken for the server.
    Anyone,
}

impl Trust {
    /// What a connection is made with.
    ///
    /// # Errors
    /// When there is no authority to trust.
    pub(super) fn tls(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::System => {
                // One certificate that can't be read is no reason to trust none.
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let cause = found.errors.first().map(|cause| format!(": {cause}"));
                    bail!(
                        "this system names no authority that could vouch for a server{} \
                         (Debian's ca-certificates does; or use --cacert FILE)",
                        cause.unwrap_or_default()
                    );
                }
            }
            Self::File(path) => {
                let name = path.display();
                let certificates = CertificateDer::pem_file_iter(path)
                    .with_context(|| format!("can't read {name}"))?;
                for certificate in certificates {
                    let certificate =
                        certificate.with_context(|| format!("{name} is no PEM file"))?;
                    roots
                        .add(certificate)
                        .with_context(|| format!("{name} holds what is no certificate"))?;
                }
                ensure!(!roots.is_empty(), "{name} holds no certificate in PEM form");
            }
            Self::Anyone => {
                let mut config = of(RootCertStore::empty())?;
                config.dangerous().set_certificate_verifier(Arc::new(Unverified(provider())));
                return Ok(config);
            }
        }
        of(roots)
    }
}

/// For addresses without TLS: no certificate is ever looked at.
pub(super) fn nobody() -> Result<ClientConfig> {
    of(RootCertStore::empty())
}

fn of(roots: RootCertStore) -> Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("no version of TLS")?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Takes any certificate, but checks that the server holds its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

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
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
