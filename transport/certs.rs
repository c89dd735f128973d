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

use crate::connection::PeerName;
use crate::error::TransportError;
use crate::token;

/// A clock may be off by this much.
const SKEW: Duration = Duration::minutes(5);

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

    /// How long until two thirds of the certificate's life are over, when it is time for another.
    pub fn renew_in(&self) -> std::time::Duration {
        let validity = self.chain.first().and_then(|certificate| {
            let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
            let validity = certificate.validity();
            Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
        });
        // A certificate that can't be read should be replaced at once.
        let (begin, end) = validity.unwrap_or_default();
        let renewal = begin + (end - begin) / 3 * 2;
        let left = renewal - OffsetDateTime::now_utc().unix_timestamp();
        std::time::Duration::from_secs(u64::try_from(left).unwrap_or(0))
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
        describe(&mut params, &PeerName::Coordinator, days)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(certificates)?;
        let authority = self.certificate.to_vec();
        let mut identity =
            Identity::new(certificate.der().to_vec(), key.serialize_der(), authority);
        // For nodes that know nothing but the hash of the authority's key.
        identity.chain.push(self.certificate.clone());
        Ok(identity)
    }

    /// An identity whose certificate has expired.
    #[cfg(test)]
    pub(crate) fn old_coordinator_identity(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        describe(&mut params, &PeerName::Coordinator, 1).unwrap();
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

    /// By what a token names this authority.
    pub(crate) fn key_hash(&self) -> Result<String, TransportError> {
        key_hash(&self.certificate)
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

/// The hash of a certificate's key.
pub(crate) fn key_hash(certificate: &CertificateDer<'_>) -> Result<String, TransportError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(certificates)?;
    Ok(token::hash(certificate.public_key().raw))
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
        let (_, request) = request().unwrap();
        assert!(authority.issue(&request, NodeId(1), 1).is_ok());
        for at in 0..request.len() {
            let mut changed = request.clone();
            changed[at] ^= 0x55;
            // Somewhere it may be harmless (padding bits); nowhere may it panic.
            let issued = authority.issue(&changed, NodeId(1), 1);
            let is_key_or_signature = (60..100).contains(&at) || at + 20 > request.len();
            assert!(issued.is_err() || !is_key_or_signature, "byte {at}");
            assert!(authority.issue(&request[..at], NodeId(1), 1).is_err(), "{at} bytes");
        }
    }
}
