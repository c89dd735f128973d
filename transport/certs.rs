//! The cluster's certificates: an authority in the coordinator's data directory, and an identity
//! for each process, valid for days.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use protocol::NodeId;
use protocol::config::ConfigError;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::connection::PeerName;
use crate::error::TransportError;
use crate::token;

/// A clock may be off by this much.
pub(crate) const SKEW: Duration = Duration::minutes(5);

/// The authority outlives the nodes' certificates by far.
const AUTHORITY_DAYS: u32 = 3650;

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

    /// The identity that was [kept](Self::keep) in `path`, if it is of this key and its time isn't
    /// over.
    pub fn load(path: &Path, key: &NodeKey) -> Option<Self> {
        let pem = fs::read(path).ok()?;
        let mut certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
        let (own, authority) = (certificates.next()?, certificates.next()?);
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.0.clone())).ok()?;
        if !certifies(&own, &pair) {
            return None;
        }
        let identity = Self { chain: vec![own], key: key.0.clone(), authority };
        identity.is_valid().then_some(identity)
    }

    /// Keeps the certificate in `path`, for [`load`](Self::load) after a restart.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn keep(&self, path: &Path) -> Result<(), TransportError> {
        let pem = |der: &CertificateDer<'_>| pem::encode(&pem::Pem::new("CERTIFICATE", &**der));
        let own = self.chain.first().map(pem).unwrap_or_default();
        write(path, &(own + &pem(&self.authority)))
    }

    /// Whether its time has begun and isn't over.
    pub fn is_valid(&self) -> bool {
        let (begin, end) = self.validity();
        (begin..end).contains(&OffsetDateTime::now_utc().unix_timestamp())
    }

    /// Seconds at which it begins and ends; one that can't be read was never valid.
    fn validity(&self) -> (i64, i64) {
        let validity = self.chain.first().and_then(|certificate| {
            let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
            let validity = certificate.validity();
            Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
        });
        validity.unwrap_or_default()
    }

    /// How long until two thirds of the certificate's life are over, when it is time for another.
    pub(crate) fn renew_in(&self) -> std::time::Duration {
        // A certificate that can't be read should be replaced at once.
        let (begin, end) = self.validity();
        let renewal = begin + (end - begin) / 3 * 2;
        let left = renewal - OffsetDateTime::now_utc().unix_timestamp();
        std::time::Duration::from_secs(u64::try_from(left).unwrap_or(0))
    }

    pub(crate) fn private_key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key.clone().into()
    }
}

/// A node's own key, for which it asks for certificates: the same one as long as it lives, so that
/// whoever asks twice is known to be one.
#[derive(Clone)]
pub struct NodeKey(Vec<u8>);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey")
    }
}

impl NodeKey {
    /// A new one, of which nobody else knows.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new() -> Result<Self, TransportError> {
        Ok(Self(KeyPair::generate().map_err(certificates)?.serialize_der()))
    }

    /// The key kept in `path`; a new one where there is none, or a disk that was full cut it off.
    ///
    /// # Errors
    /// When it can't be written, or the file holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, TransportError> {
        match fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => {
                let key = KeyPair::from_pem(&text).map_err(|cause| unusable(path, cause))?;
                Ok(Self(key.serialize_der()))
            }
            Ok(_) => Self::create(path),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(cause) => Err(unusable(path, cause)),
        }
    }

    fn create(path: &Path) -> Result<Self, TransportError> {
        let key = KeyPair::generate().map_err(certificates)?;
        write(path, &key.serialize_pem())?;
        Ok(Self(key.serialize_der()))
    }

    pub(crate) fn of(identity: &Identity) -> Self {
        Self(identity.key.clone())
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.0.clone()
    }

    /// A request for a certificate of this key.
    pub(crate) fn request(&self) -> Result<Vec<u8>, TransportError> {
        let key = PrivatePkcs8KeyDer::from(self.der());
        let key = KeyPair::try_from(&key).map_err(certificates)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(certificates)?;
        Ok(request.der().to_vec())
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
        if !key_path.exists() {
            if certificate_path.exists() {
                return Err(TransportError::Certificates(format!(
                    "{} is there, but not its key {}: put the key back, or remove the certificate \
                     to begin a new cluster",
                    certificate_path.display(),
                    key_path.display()
                )));
            }
            let key = KeyPair::generate().map_err(certificates)?;
            write(&key_path, &key.serialize_pem())?;
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(|cause| unusable(path, cause));
        let key =
            KeyPair::from_pem(&read(&key_path)?).map_err(|cause| unusable(&key_path, cause))?;
        // The key is written first, so a start that was cut short is taken up here.
        if !certificate_path.exists() {
            write(&certificate_path, &self_signed(&key)?)?;
        }
        let certificate = CertificateDer::from_pem_slice(read(&certificate_path)?.as_bytes())
            .map_err(|cause| unusable(&certificate_path, cause))?;
        if !certifies(&certificate, &key) {
            return Err(unusable(&certificate_path, "it isn't the certificate of ca.key"));
        }
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
        describe(&mut params, PeerName::Coordinator, None, days)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(certificates)?;
        let authority = self.certificate.to_vec();
        let mut identity =
            Identity::new(certificate.der().to_vec(), key.serialize_der(), authority);
        // For nodes that know nothing but the hash of the authority's key.
        identity.chain.push(self.certificate.clone());
        Ok(identity)
    }

    /// A node's identity, with a key of its own, for a day. Nodes ask for theirs; this is for tests
    /// of several.
    ///
    /// # Errors
    /// When no certificate can be made.
    #[doc(hidden)]
    pub fn node_identity(&self, node: NodeId, pool: &str) -> Result<Identity, TransportError> {
        let key = NodeKey::new()?;
        let certificate = self.issue(&key.request()?, node, pool, 1)?;
        Ok(Identity::new(certificate, key.der(), self.certificate()))
    }

    /// An identity whose certificate has expired.
    #[cfg(test)]
    pub(crate) fn old_coordinator_identity(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        describe(&mut params, PeerName::Coordinator, None, 1).unwrap();
        params.not_before -= Duration::days(2);
        params.not_after -= Duration::days(2);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let authority = self.certificate.to_vec();
        Identity::new(certificate.der().to_vec(), key.serialize_der(), authority)
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
        pool: &str,
        days: u32,
    ) -> Result<Vec<u8>, TransportError> {
        let request = CertificateSigningRequestDer::from(request.to_vec());
        let request = CertificateSigningRequestParams::from_der(&request).map_err(certificates)?;
        let mut params = CertificateParams::default();
        describe(&mut params, PeerName::Node(node), Some(pool), days)?;
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(certificates)?;
        Ok(certificate.der().to_vec())
    }

    /// By what a token names this authority.
    pub(crate) fn key_hash(&self) -> Result<String, TransportError> {
        key_hash(&self.certificate)
    }

    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.certificate.to_vec()
    }
}

/// The hash of the key that a request is for, which is signed by it.
pub(crate) fn requested_key(request: &[u8]) -> Result<Vec<u8>, TransportError> {
    let (_, request) = X509CertificationRequest::from_der(request).map_err(certificates)?;
    let key = request.certification_request_info.subject_pki.raw;
    Ok(token::hash(key).into_bytes())
}

fn self_signed(key: &KeyPair) -> Result<String, TransportError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "AutoGLM cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasts(&mut params, AUTHORITY_DAYS)?;
    Ok(params.self_signed(key).map_err(certificates)?.pem())
}

fn certifies(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, it)| it.public_key().raw == key.subject_public_key_info())
}

/// What tokens name an authority by.
pub(crate) fn key_hash(certificate: &CertificateDer<'_>) -> Result<String, TransportError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(certificates)?;
    Ok(token::hash(certificate.public_key().raw))
}

fn describe(
    params: &mut CertificateParams,
    peer: PeerName,
    pool: Option<&str>,
    days: u32,
) -> Result<(), TransportError> {
    let name = peer.to_string();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    let name = name.try_into().map_err(certificates)?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    if let Some(pool) = pool {
        let uri = peer.uri(pool).try_into().map_err(certificates)?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    lasts(params, days)
}

fn lasts(params: &mut CertificateParams, days: u32) -> Result<(), TransportError> {
    let now = OffsetDateTime::now_utc();
    let end = now.checked_add(Duration::days(days.into())).filter(|_| days > 0);
    params.not_before = now - SKEW;
    let expected = "must be at least 1, and end before the year 10000";
    let (key, value) = ("transport.certificate_days", days.to_string());
    params.not_after = end.ok_or(ConfigError::Value { key, value, expected })?;
    Ok(())
}

/// Whole or not at all, and for nobody else's eyes.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), TransportError> {
    let written = path.with_extension("new");
    let write = || {
        // Left over from a start that was cut short.
        let _ = fs::remove_file(&written);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&written)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&written, path)
    };
    write().map_err(|cause| unusable(path, cause))
}

fn certificates(cause: impl ToString) -> TransportError {
    TransportError::Certificates(cause.to_string())
}

fn unusable(path: &Path, cause: impl std::fmt::Display) -> TransportError {
    TransportError::Certificates(format!("{}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(dir.path()).unwrap();
        let second = Authority::load_or_create(dir.path()).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        assert_ne!(first.cookie(), second.cookie());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    /// An authority is replaced by nobody but the operator: its nodes would be strangers.
    #[test]
    fn half_an_authority_is_completed_or_refused_by_name() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::load_or_create(other.path()).unwrap();
        Authority::load_or_create(dir.path()).unwrap();
        let (key, certificate) = (dir.path().join("ca.key"), dir.path().join("ca.pem"));
        let key_text = fs::read(&key).unwrap();
        fs::remove_file(&certificate).unwrap();
        Authority::load_or_create(dir.path()).unwrap();
        assert_eq!(fs::read(&key).unwrap(), key_text, "the key stays");
        let refused = || Authority::load_or_create(dir.path()).unwrap_err().to_string();

        fs::remove_file(&key).unwrap();
        assert!(refused().contains("put the key back"), "{}", refused());
        fs::copy(other.path().join("ca.key"), &key).unwrap();
        assert!(refused().contains("isn't the certificate of ca.key"), "{}", refused());
        fs::write(&key, "not a key").unwrap();
        assert!(refused().contains("ca.key"), "{}", refused());
    }

    #[test]
    fn a_certificate_lasts_as_long_as_configured() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let renew_in = authority.coordinator_identity(3).unwrap().renew_in();
        let two_days = std::time::Duration::from_secs(2 * 24 * 3600);
        assert!(
            renew_in <= two_days && renew_in.as_secs() + 600 > two_days.as_secs(),
            "{renew_in:?}"
        );
        for days in [0, u32::MAX] {
            let error = authority.coordinator_identity(days).unwrap_err().to_string();
            assert!(error.starts_with("transport.certificate_days = "), "{error}");
        }
    }

    #[test]
    fn a_request_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let request = NodeKey::new().unwrap().request().unwrap();
        assert!(authority.issue(&request, NodeId(1), "a", 1).is_ok());
        for at in 0..request.len() {
            let mut changed = request.clone();
            changed[at] ^= 0x55;
            // Somewhere it may be harmless (padding bits); nowhere may it panic.
            let issued = authority.issue(&changed, NodeId(1), "a", 1);
            let is_key_or_signature = (60..100).contains(&at) || at + 20 > request.len();
            assert!(issued.is_err() || !is_key_or_signature, "byte {at}");
            assert!(authority.issue(&request[..at], NodeId(1), "a", 1).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_node_is_known_again_by_what_it_kept() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::load_or_create(other.path()).unwrap();
        let (key_path, path) = (dir.path().join("node.key"), dir.path().join("node.pem"));
        fs::write(&key_path, "").unwrap();
        let key = NodeKey::load_or_create(&key_path).unwrap();
        assert_eq!(NodeKey::load_or_create(&key_path).unwrap().der(), key.der());
        assert!(Identity::load(&path, &key).is_none());
        let certificate = authority.issue(&key.request().unwrap(), NodeId(1), "gpu-a", 1).unwrap();
        let identity = Identity::new(certificate, key.der(), authority.certificate());
        identity.keep(&path).unwrap();
        let loaded = Identity::load(&path, &key).unwrap();
        assert_eq!((loaded.chain, loaded.authority), (identity.chain, identity.authority));
        assert!(Identity::load(&path, &NodeKey::new().unwrap()).is_none(), "of another key");
        authority.old_coordinator_identity().keep(&path).unwrap();
        let old = NodeKey::of(&authority.old_coordinator_identity());
        assert!(Identity::load(&path, &old).is_none() && Identity::load(&path, &key).is_none());
        #[cfg(unix)]
        for file in [key_path, path] {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
