//! The cluster's certificates: an authority in the coordinator's data directory, and an identity
//! for each process, valid for days.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use protocol::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use crate::endpoint::PeerName;
use crate::error::TransportError;

/// A clock may be off by this much.
const SKEW: Duration = Duration::minutes(5);

/// The authority outlives the nodes' certificates by far.
const AUTHORITY_DAYS: i64 = 3650;

/// Who a process is: a certificate of the cluster's authority and its key.
#[derive(Clone)]
pub struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
    pub(crate) authority: CertificateDer<'static>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    pub(crate) fn new(chain: Vec<u8>, key: Vec<u8>, authority: Vec<u8>) -> Self {
        Self { chain: vec![chain.into()], key, authority: authority.into() }
    }

    pub(crate) fn private_key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key.clone().into()
    }
}

/// The cluster's authority. Whoever has its key can admit nodes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    cookie: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority kept in `data_dir`; a new one when it holds none.
    ///
    /// # Errors
    /// When the directory can't be written, or holds something else.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, TransportError> {
        let (key_path, certificate_path) = (data_dir.join("ca.key"), data_dir.join("ca.pem"));
        if !key_path.exists() || !certificate_path.exists() {
            let (key, pem) = create()?;
            write_private(&key_path, &key.serialize_pem())?;
            fs::write(&certificate_path, pem).map_err(|cause| file(&certificate_path, cause))?;
        }
        let pem = |path: &Path| fs::read_to_string(path).map_err(|cause| file(path, cause));
        let key = KeyPair::from_pem(&pem(&key_path)?).map_err(certificates)?;
        let pem = pem(&certificate_path)?;
        let certificate = pem_to_der(&pem)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(certificates)?;
        // ractor_cluster asks for a shared secret of its own; inside mutual TLS it guards only the
        // loopback listener that can't be switched off.
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|cause| certificates(cause.to_string()))?;
        let cookie = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { issuer, certificate, cookie })
    }

    /// The shared secret of the control plane, drawn at every start.
    pub fn cookie(&self) -> String {
        self.cookie.clone()
    }

    /// The coordinator's own identity.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn coordinator_identity(&self, days: u32) -> Result<Identity, TransportError> {
        let key = KeyPair::generate().map_err(certificates)?;
        let mut params = CertificateParams::default();
        describe(&mut params, &PeerName::Coordinator, days)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(certificates)?;
        let authority = self.certificate.to_vec();
        Ok(Identity::new(certificate.der().to_vec(), key.serialize_der(), authority))
    }

    /// A node's certificate for the key of its request. Whatever else the request asks for is
    /// ignored: the authority decides what a node may be called.
    ///
    /// # Errors
    /// When the request is malformed or not signed by its key.
    pub(crate) fn issue(
        &self,
        request: &[u8],
        node: NodeId,
        days: u32,
    ) -> Result<Vec<u8>, TransportError> {
        let request = CertificateSigningRequestDer::from(request.to_vec());
        let request = CertificateSigningRequestParams::from_der(&request).map_err(certificates)?;
        let mut params = CertificateParams::default();
        describe(&mut params, &PeerName::Node(node), days)?;
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(certificates)?;
        Ok(certificate.der().to_vec())
    }

    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.certificate.to_vec()
    }
}

/// A key, and a request for a certificate of it.
pub(crate) fn request() -> Result<(Vec<u8>, Vec<u8>), TransportError> {
    let key = KeyPair::generate().map_err(certificates)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(certificates)?;
    Ok((key.serialize_der(), request.der().to_vec()))
}

fn create() -> Result<(KeyPair, String), TransportError> {
    let key = KeyPair::generate().map_err(certificates)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "AutoGLM cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(AUTHORITY_DAYS);
    let certificate = params.self_signed(&key).map_err(certificates)?;
    Ok((key, certificate.pem()))
}

fn describe(
    params: &mut CertificateParams,
    name: &PeerName,
    days: u32,
) -> Result<(), TransportError> {
    let name = name.to_string();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    let name = name.try_into().map_err(certificates)?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(days.into());
    Ok(())
}

fn pem_to_der(pem: &str) -> Result<CertificateDer<'static>, TransportError> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|cause| certificates(cause.to_string()))
}

fn write_private(path: &Path, text: &str) -> Result<(), TransportError> {
    let mut options = OpenOptions::new();
    let file_result = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file_result
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|cause| file(path, cause))
}

fn certificates(cause: impl ToString) -> TransportError {
    TransportError::Certificates(cause.to_string())
}

fn file(path: &Path, cause: std::io::Error) -> TransportError {
    TransportError::Certificates(format!("{}: {cause}", path.display()))
}
